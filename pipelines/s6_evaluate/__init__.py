"""Stage 6: the data of downstream tasks (`task_data`), and trained models measured on them (`stage`)."""
