#!/usr/bin/env bash
# A SLURM of one node on this Debian or Ubuntu machine, in a folder, without installing anything: bash slurm.sh FOLDER
# Then `. FOLDER/env.sh` and `sinfo`. `kill $(cat FOLDER/d.pid FOLDER/ctld.pid)` ends it. It has no accounting (`sacct`) and, as root of
# a machine of one's own, no authentication. Partition low is preempted by partition high, with 40 s to make room.
set -euo pipefail
folder=$(realpath -m "$1")
root=$folder/root library=$folder/root/usr/lib/$(uname -m)-linux-gnu
mkdir -p "$folder"/{state,spool,packages} "$root"
cd "$folder/packages"
apt-get download slurmctld slurmd slurm-client slurm-wlm-basic-plugins libslurm38 libmunge2 libhwloc15
for package in *.deb; do dpkg -x "$package" "$root"; done
ln -sf slurmstepd-wlm "$root/usr/sbin/slurmstepd"
cat >"$folder/slurm.conf" <<CONF
ClusterName=rehearsal
SlurmctldHost=$(hostname)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
PluginDir=$library/slurm-wlm
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/ctld.pid
SlurmdPidFile=$folder/d.pid
SlurmctldLogFile=$folder/ctld.log
SlurmdLogFile=$folder/d.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=15
NodeName=$(hostname) CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$(hostname) Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=40
PartitionName=high Nodes=$(hostname) PriorityTier=10 PreemptMode=OFF
CONF
cat >"$folder/env.sh" <<ENV
export LD_LIBRARY_PATH=$library:$library/slurm-wlm SLURM_CONF=$folder/slurm.conf PATH=$root/usr/bin:\$PATH
ENV
# shellcheck disable=SC1091
. "$folder/env.sh"
"$root/usr/sbin/slurmctld-wlm"
sleep 2
"$root/usr/sbin/slurmd-wlm" -d "$root/usr/sbin/slurmstepd"
sleep 2
sinfo
