#!/bin/bash

# Parameters
#SBATCH --chdir=/store/s1/logs
#SBATCH --cpus-per-task=1
#SBATCH --export=NONE
#SBATCH --job-name=dpc.pretrain-0123456789ab-s1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/store/s1/logs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
umask 077
unset SLURM_EXPORT_ENV
export HOME=/home/ann
export PATH=/usr/bin:/bin
export PYTHONPATH=/store/code/0123
export ORCHESTRATE_SCRIPT="$0"
on_term() { trap '' TERM USR2; signalled=1; if /env/bin/python -P -m cluster.epilogue /store/s1 --exit-code 143 --signalled; then trap on_term TERM; trap signalled=1 USR2; fi; }
trap on_term TERM
trap signalled=1 USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/s1/logs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 /env/bin/python -P -m orchestrator.entry /store/s1 --submission 1 &


# teardown
ranks=$!
signalled=1; while [ -n "$signalled" ]; do signalled=; wait "$ranks"; rc=$?; done
trap '' TERM USR2
/env/bin/python -P -m cluster.epilogue /store/s1 --exit-code "$rc"
exit $?