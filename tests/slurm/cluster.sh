#!/usr/bin/env bash
# A real SLURM of two nodes on this machine, in a folder of its own; nothing outside is touched.
#
#   tests/slurm/cluster.sh FOLDER      prints "ready" when both nodes are idle; Ctrl-D ends it
#   SLURM_CONF=FOLDER/slurm.conf sinfo in another shell: sbatch, squeue, scancel work there, too
#
# It ends with its standard input, so it goes when whoever started it goes, however that happens:
# jobs are cancelled, daemons stopped. Ports are free ones, munge has its own key and socket, job
# numbers start anywhere, since Lightning makes ports of them: several clusters can run side by side.
# Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
set -euo pipefail

(($# == 1)) || { echo "usage: tests/slurm/cluster.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
user=$(id -un)
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin
daemons=()

stop() {
  trap - EXIT INT TERM
  if ((${#daemons[@]} > 1)); then
    scancel --user "$user" 2>"$folder/stop.log" || true
    for _ in {1..50}; do
      [[ -z $(squeue --noheader 2>>"$folder/stop.log") ]] && break
      sleep 0.2
    done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do # munge last: the others sign off with it
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" 2>/dev/null || true
  done
}
trap stop EXIT
trap 'exit 1' INT TERM

start() { # NAME COMMAND...: in the background, its output in FOLDER/NAME.log
  local name=$1
  shift
  "$@" </dev/null >"$folder/$name.log" 2>&1 &
  daemons+=($!)
}

within() { # SECONDS COMMAND...: repeat until it succeeds; fails when the time is over or a daemon ended
  local end=$((SECONDS + $1))
  shift
  until "$@" >"$folder/wait.log" 2>&1; do
    kill -0 "${daemons[@]}" 2>>"$folder/wait.log" || return 1
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

give_up() {
  echo "$1:" >&2
  tail -n 5 "$folder/$2.log" >&2
  exit 1
}

mkdir -p "$folder/state" "$folder/spool"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
read -r ctld_port port_1 port_2 job < <(python3 - <<'PYTHON'
import random
import socket

held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held), random.randrange(1000, 9000))
PYTHON
)
# cred_expire: a requeued job may start again after so many seconds. The nodes claim more than there
# is, so that the scripts can be submitted as they are; gpu is a number that nothing stands behind.
cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
FirstJobId=$job
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$port_1 CPUs=32 CoresPerSocket=32 RealMemory=8000 Gres=gpu:8
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$port_2 CPUs=32 CoresPerSocket=32 RealMemory=8000 Gres=gpu:8
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=2
CONF
touch "$folder"/gpu{0..7}
echo "Name=gpu File=$folder/gpu[0-7]" >"$folder/gres.conf"

start munged munged --foreground --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munge-daemon.log"
within 10 munge --no-input --socket="$folder/munge.socket" || give_up "munged does not answer" munged
start slurmctld slurmctld -D
start slurmd-node1 slurmd -D -N node1
start slurmd-node2 slurmd -D -N node2
all_idle() { [[ $(sinfo --noheader --Node --format=%t | sort -u) == idle ]]; }
within 30 all_idle || give_up "the nodes do not come up" slurmctld
echo ready
cat >/dev/null # until standard input ends
