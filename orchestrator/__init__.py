"""Recipe language, DAG planning, submission, status and the command line."""
