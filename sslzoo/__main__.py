"""`python -m sslzoo` is `sslzoo`: what torchrun starts."""

from sslzoo.cli import main

main()
