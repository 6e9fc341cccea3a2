"""The team's page: a small web server over the records, the boards and the runs in progress."""
