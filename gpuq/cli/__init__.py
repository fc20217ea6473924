"""The command line: one module per group of verbs, imported only when one of them is called."""
