"""Commands of ``mesh``: each module prints and returns an exit code, and is loaded when its command runs."""
