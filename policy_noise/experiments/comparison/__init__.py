"""A controlled comparison of training methods on your own data: its runs, their scores, and the report."""
