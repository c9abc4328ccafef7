"""What does a recipe say, and how does it become parts? YAML, keys, schedules; then parts that fit."""
