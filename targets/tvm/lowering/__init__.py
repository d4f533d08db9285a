"""From the IR to Relax: one table of rules that says which nodes TVM takes, and how each is written in Relax.

table.py      Rule and the table; `why_not(node)` answers before anything is compiled
view.py       View, a node with its operands' shapes and constants, as rules read it
context.py    Lowering, the Relax function under construction
graph.py      lower(model) -> the module with one function `main`
symbols.py    symbolic dims as TVM expressions

The other modules hold the rules by family. Rules import TVM through the context: listing targets must not load it.
"""
