"""The `distaff` command, one module per sub-command, and the shell entry points `demo` and `test`."""
