"""Apache TVM as a target: `tvm{device=cpu isa=avx2 threads=4}` compiles a model to one shared library.

target.py      the Target class
compiling.py   which parts a model has, and what each becomes: partition.py, parts.py, plan.py
lowering/      from the IR to Relax
build.py       from Relax to a library; cpu/ and gpu/ schedule, toolchain.py links, machine.py says for what
sizes.py       what takes the room in it
runner.py      runs an artifact in a child process (worker.py, library.py); emulated.py under qemu (runtime.py, run.cc)

Nothing here imports TVM at module level: it takes seconds, and listing targets must not.
"""
