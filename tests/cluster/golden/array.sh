#!/bin/bash

# Parameters
#SBATCH --array=0-2,7%2
#SBATCH --chdir=/store/arrays/a
#SBATCH --cpus-per-task=1
#SBATCH --export=NONE
#SBATCH --job-name=index-k400.parts-0123456789ab-s1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/store/arrays/a/%a/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
case "$SLURM_ARRAY_TASK_ID" in
  0) target=(/store/stages/index_part-000000000000 --submission 1) ;;
  1) target=(/store/stages/index_part-000000000001 --submission 1) ;;
  2) target=(/store/stages/index_part-000000000002 --submission 1) ;;
  7) target=(/store/stages/index_part-000000000007 --submission 1) ;;
  *) echo "orchestrate: no task $SLURM_ARRAY_TASK_ID in this script" >&2; exit 65 ;;
esac
umask 077
unset SLURM_EXPORT_ENV
export HOME=/home/ann
export PATH=/usr/bin:/bin
export PYTHONPATH=/store/code/0123
export ORCHESTRATE_SCRIPT="$0"
on_term() { trap '' TERM USR2; signalled=1; if /env/bin/python -P -m cluster.epilogue "${target[@]}" --exit-code 143 --signalled; then trap on_term TERM; trap signalled=1 USR2; fi; }
trap on_term TERM
trap signalled=1 USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/arrays/a/%a/%A_%a_%t_log.out --open-mode=append --kill-on-bad-exit=1 --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 /env/bin/python -P -m orchestrator.entry "${target[@]}" &


# teardown
ranks=$!
signalled=1; while [ -n "$signalled" ]; do signalled=; wait "$ranks"; rc=$?; done
trap '' TERM USR2
/env/bin/python -P -m cluster.epilogue "${target[@]}" --exit-code "$rc"
exit $?