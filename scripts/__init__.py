"""The `distaff` command, one module per subcommand."""
