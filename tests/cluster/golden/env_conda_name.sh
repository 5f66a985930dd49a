#!/bin/bash

# Parameters
#SBATCH --chdir=/store/s1/logs
#SBATCH --cpus-per-task=1
#SBATCH --export=NONE
#SBATCH --gpus-per-node=4
#SBATCH --job-name=dpc.pretrain-0123456789ab-s1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/store/s1/logs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
umask 077
unset SLURM_EXPORT_ENV
export HOME=/home/ann
export OMP_NUM_THREADS=8
export PATH=/usr/bin:/bin
export PYTHONPATH=/store/code/0123
export ORCHESTRATE_SCRIPT="$0"
/env/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'orchestrate: this node has no Python 3.11 at /env/bin/python, which must decide what becomes of the job: set cluster.env.host_python' >&2; exit 65; }
unprepared() { echo "orchestrate: $(hostname): cannot prepare the environment: $1" >&2; exit 74; }
srun() {
  . /opt/conda/etc/profile.d/conda.sh || unprepared /opt/conda/etc/profile.d/conda.sh
  conda activate video || unprepared 'conda activate video'
  export PYTHONNOUSERSITE=1
  export OMP_NUM_THREADS=8
  export PYTHONPATH=/store/code/0123"${PYTHONPATH:+:$PYTHONPATH}"
  exec srun "$@"
}
on_term() { trap '' TERM USR2; signalled=1; if /env/bin/python -P -m cluster.epilogue /store/s1 --exit-code 143 --signalled; then trap on_term TERM; trap signalled=1 USR2; fi; }
trap on_term TERM
trap signalled=1 USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/s1/logs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --nodes=1 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=1 python -P -m orchestrator.entry /store/s1 --submission 1 &


# teardown
ranks=$!
signalled=1; while [ -n "$signalled" ]; do signalled=; wait "$ranks"; rc=$?; done
trap '' TERM USR2
/env/bin/python -P -m cluster.epilogue /store/s1 --exit-code "$rc"
exit $?