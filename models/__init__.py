"""What is computed: decoder maths, model families, checkpoints and tokenizers."""
