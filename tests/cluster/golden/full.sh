#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --chdir=/store/s1/logs
#SBATCH --comment='orchestrate pretrain-0123456789ab'
#SBATCH --constraint='h200&ib'
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:11:12
#SBATCH --exclude='n[07-08]'
#SBATCH --exclusive
#SBATCH --export=NONE
#SBATCH --gpus-per-node=8
#SBATCH --gres=nvme:1
#SBATCH --job-name=dpc.pretrain-0123456789ab-s1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=scratch:1
#SBATCH --mail-user=ann@example.org
#SBATCH --mem=205312M
#SBATCH --nice=10
#SBATCH --nodelist='n[01-02]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/store/s1/logs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=school
#SBATCH --signal=USR2@600
#SBATCH --time=1440

# setup
umask 077
unset SLURM_EXPORT_ENV
export HOME=/home/ann
export PATH=/usr/bin:/bin
export PYTHONPATH=/store/code/0123
export ORCHESTRATE_SCRIPT="$0"
on_term() { trap '' TERM USR2; signalled=1; if /env/bin/python -P -m cluster.epilogue /store/s1 --exit-code 143 --signalled; then trap on_term TERM; trap signalled=1 USR2; fi; }
on_exit() { code=$?; trap '' TERM USR2; trap - EXIT; /env/bin/python -P -m cluster.epilogue /store/s1 --exit-code "$code"; exit $?; }
trap on_exit EXIT
trap on_term TERM
trap signalled=1 USR2
source /etc/profile
module load cuda
set +eu; trap - EXIT ERR DEBUG RETURN
trap on_term TERM
trap signalled=1 USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/s1/logs/%j_%t_log.out --cpu-bind=cores --open-mode=append --kill-on-bad-exit=1 --nodes=2 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=12 /env/bin/python -P -m orchestrator.entry /store/s1 --submission 1 &


# teardown
ranks=$!
signalled=1; while [ -n "$signalled" ]; do signalled=; wait "$ranks"; rc=$?; done
trap '' TERM USR2
/env/bin/python -P -m cluster.epilogue /store/s1 --exit-code "$rc"
exit $?