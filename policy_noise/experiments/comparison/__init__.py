"""A controlled comparison of trainings on anyone's data: what runs, how it is scored, what can be said of it."""
