"""Write the HTML page of a run's folder."""

from policy_noise.experiments.cli import report

if __name__ == "__main__":
    report()
