"""`python -m lit_probsft COMMAND`."""

from lit_probsft.cli.shell import run

if __name__ == "__main__":
    run()
