#!/usr/bin/env bash
# A real SLURM on one Linux machine for the tests: two virtual nodes, accounting, pre-emption. Needs root.
#   tests/slurm.sh start DIR   then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm.sh stop DIR
# Debian: slurmctld slurmd slurm-client munge slurmdbd mariadb-server slurm-wlm-mysql-plugin
# A job of the partition urgent makes one of main be queued again.
set -euo pipefail
ACTION=${1:?start or stop}
D=$(realpath -m "${2:?folder}")
if [ "$ACTION" = stop ]; then
  for p in slurmd.n0 slurmd.n1 slurmctld slurmdbd db/m munge/munged; do
    f=$D/$p.pid
    if [ -s "$f" ]; then kill "$(cat "$f")" 2> /dev/null || true; sleep 0.5; fi
  done
  exit 0
fi
mkdir -p "$D"/{munge,state,spool.n0,spool.n1,db}
cd "$D"
cat > slurm.conf <<C
ClusterName=tiny
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool.%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.%n.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass=$D/munge/munge.socket
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_delay=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=15
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
NodeName=n[0-1] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n[0-1] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
C
cat > slurmdbd.conf <<C
DbdHost=localhost
DbdPort=16819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile=$D/slurmdbd.log
PidFile=$D/slurmdbd.pid
C
chmod 600 slurmdbd.conf
export SLURM_CONF=$D/slurm.conf
if [ ! -s munge/munge.key ]; then
  dd if=/dev/urandom bs=1 count=128 of=munge/munge.key 2> /dev/null
  chmod 600 munge/munge.key
fi
munged --force --key-file="$D/munge/munge.key" --socket="$D/munge/munge.socket" --pid-file="$D/munge/munged.pid" \
  --log-file="$D/munge/munged.log" --seed-file="$D/munge/seed" --origin=127.0.0.1
chown mysql db
[ -d db/mysql ] || mariadb-install-db --no-defaults --user=mysql --datadir="$D/db" --skip-test-db > db.install.log 2>&1
setsid mariadbd --no-defaults --user=mysql --datadir="$D/db" --socket="$D/db/s.sock" --port=13306 \
  --bind-address=127.0.0.1 --pid-file="$D/db/m.pid" --innodb-buffer-pool-size=64M > db.log 2>&1 < /dev/null &
for _ in $(seq 120); do [ -S db/s.sock ] && break; sleep 0.5; done
sql() { mariadb --no-defaults -S db/s.sock -u root -e "$1"; }
sql "CREATE DATABASE IF NOT EXISTS slurm_acct"
for host in % localhost; do
  sql "CREATE USER IF NOT EXISTS 'slurm'@'$host' IDENTIFIED BY 'slurm'"
  sql "GRANT ALL ON slurm_acct.* TO 'slurm'@'$host'"
done
slurmdbd
for _ in $(seq 120); do (exec 3<> /dev/tcp/127.0.0.1/16819) 2> /dev/null && break; sleep 0.5; done
sacctmgr -i add cluster tiny > /dev/null || true
slurmctld -f "$D/slurm.conf"
sleep 1
for n in n0 n1; do slurmd -N $n -f "$D/slurm.conf"; done
for _ in $(seq 60); do
  if [ "$(sinfo -h -t idle -p main -o %D)" = 2 ]; then exit 0; fi
  sleep 1
done
echo "the nodes do not become idle; see $D/slurmctld.log" >&2
exit 1
