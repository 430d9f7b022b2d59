"""A small Qwen3-VL that says what it sees of a simulated hand."""
