"""Commands of ``mesh``: each module prints and returns an exit code.

- A module is loaded when its command runs, because ``mesh --help`` and ``mesh health`` must start quickly.
- A mistake of the user is raised as ``Faults``. ``mesh.cli`` prints it and returns exit code 1.
- Output is for readers and for programs: one table or JSON document on standard output, everything else on standard
  error.
"""
