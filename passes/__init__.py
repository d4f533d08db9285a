"""Built-in passes, imported as `graphopt.passes`; one file per pass, in a folder per stage.

Any file with a named `Pass` subclass in here is found by `graphopt passes`; nothing has to be registered.
"""

if __name__ != "graphopt.passes":
    raise ImportError("import graphopt.passes, not passes: a second copy of each pass would be registered")
