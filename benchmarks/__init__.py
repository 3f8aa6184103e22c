"""Speed and memory against peers; tools to time and to measure memory."""
