"""The command line: one file per command, and one for what is drawn. Importing it leaves torch unloaded."""
