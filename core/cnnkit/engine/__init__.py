"""What runs a task: files, the batch runner, training and evaluation. Nothing heavy is imported here."""
