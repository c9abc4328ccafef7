#!/usr/bin/env bash
# A real SLURM on one machine, for the tests: two nodes of two CPUs, accounting, preemption by a second partition.
#
#   tests/slurm/cluster.sh up      installs Debian's packages if need be (as root), starts every daemon, waits for idle nodes
#   tests/slurm/cluster.sh down    stops them all
#   tests/slurm/cluster.sh node n2 starts one node's daemon again
#
# Afterwards `export SLURM_CONF=$SSLZOO_SLURM/slurm.conf` reaches it (default folder: /tmp/sslzoo-slurm).
set -euo pipefail

home=${SSLZOO_SLURM:-/tmp/sslzoo-slurm}
export SLURM_CONF=$home/slurm.conf
packages=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server)

install_packages() {
    for tool in slurmctld slurmd slurmdbd munged mariadbd sbatch; do
        command -v "$tool" > /dev/null && continue
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" > /dev/null
        return
    done
}

write_configuration() {
    local host
    host=$(hostname)
    mkdir -p "$home"/{state,spool,log,mysql}
    for node in n1 n2; do
        grep -qw "$node" /etc/hosts || echo "127.0.0.1 $node" >> /etc/hosts
    done
    cat > "$home/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=8
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=associations
AccountingStorageHost=127.0.0.1
AccountingStoragePort=17819
SlurmctldPort=17817
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd-%n.pid
SlurmdSpoolDir=$home/spool/%n
StateSaveLocation=$home/state
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd-%n.log
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdTimeout=10
KillWait=20
OverTimeLimit=0
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=2000
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    cat > "$home/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=17819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_tests
LogFile=$home/log/slurmdbd.log
PidFile=$home/slurmdbd.pid
CONF
    chmod 600 "$home/slurmdbd.conf"
}

wait_for() { # seconds, words
    local left=$1
    shift
    until "$@" > /dev/null 2>&1; do
        ((left-- > 0)) || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 1
    done
}

start_database() {
    if [[ ! -d $home/mysql/mysql ]]; then
        mariadb-install-db --user=root --datadir="$home/mysql" --auth-root-authentication-method=normal > "$home/log/mysql-install.log" 2>&1
    fi
    mariadbd --no-defaults --user=root --datadir="$home/mysql" --port=17306 --bind-address=127.0.0.1 \
        --socket="$home/mysql.sock" --pid-file="$home/mysql.pid" > "$home/log/mysql.log" 2>&1 &
    wait_for 60 mariadb --no-defaults --socket="$home/mysql.sock" -u root -e "select 1"
    mariadb --no-defaults --socket="$home/mysql.sock" -u root -e "
        create database if not exists slurm_tests;
        create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
        create user if not exists 'slurm'@'localhost' identified by 'slurm';
        grant all on slurm_tests.* to 'slurm'@'127.0.0.1';
        grant all on slurm_tests.* to 'slurm'@'localhost';"
}

start_munge() {
    [[ -f /etc/munge/munge.key ]] || { mkdir -p /etc/munge; dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key 2> /dev/null; }
    chown -R munge: /etc/munge
    chmod 700 /etc/munge
    chmod 400 /etc/munge/munge.key
    mkdir -p /run/munge /var/lib/munge /var/log/munge
    chown munge: /run/munge /var/lib/munge /var/log/munge
    chmod 755 /run/munge
    pgrep -x munged > /dev/null || runuser -u munge -- munged --force > /dev/null 2>&1
    wait_for 20 munge -n
}

start_node() {
    mkdir -p "$home/spool/$1"
    slurmd -N "$1" -f "$SLURM_CONF" > "$home/log/slurmd-$1.out" 2>&1
}

both_idle() { [[ $(sinfo -h -N -p low -t idle -o %N | wc -l) -eq 2 ]]; }

up() {
    install_packages
    down
    write_configuration
    start_munge
    start_database
    SLURM_CONF=$SLURM_CONF slurmdbd -D > "$home/log/slurmdbd.out" 2>&1 &
    wait_for 60 sacctmgr -i -n show cluster
    sacctmgr -i add cluster tests > /dev/null 2>&1 || true
    slurmctld -i -f "$SLURM_CONF" > "$home/log/slurmctld.out" 2>&1
    wait_for 60 scontrol ping
    start_node n1
    start_node n2
    wait_for 60 both_idle
    sinfo
}

down() { # by pid files, so that no other SLURM of this machine is touched
    [[ -d $home ]] || return 0
    timeout 10 scancel --full --signal=KILL --state=RUNNING > /dev/null 2>&1 || true
    for file in "$home"/slurmctld.pid "$home"/slurmd-*.pid "$home"/slurmdbd.pid "$home"/mysql.pid; do
        [[ -f $file ]] && kill -9 "$(cat "$file")" 2> /dev/null || true
    done
    sleep 1
    rm -rf "$home"
}

case ${1:-} in
    up) up ;;
    down) down ;;
    node) start_node "$2" ;;
    *) sed -n '2,9p' "$0"; exit 2 ;;
esac
