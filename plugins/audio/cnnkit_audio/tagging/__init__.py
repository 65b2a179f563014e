"""What is heard when: the job of the networks that tag sounds."""
