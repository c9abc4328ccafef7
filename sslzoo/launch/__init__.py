"""Where does a run happen? In this process, under torchrun, or on SLURM; and how does one follow it from outside."""
