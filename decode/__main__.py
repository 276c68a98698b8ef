"""`python -m decode` is `decode`; `torchrun -m decode train` runs one training on several GPUs."""

from decode.cli import app

if __name__ == "__main__":
    app()
