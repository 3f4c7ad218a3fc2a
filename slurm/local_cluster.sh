#!/usr/bin/env bash
# A real SLURM on this machine, for tests and for trying things out: two nodes with two fake GPUs each, with accounting.
#
#   slurm/local_cluster.sh up [FOLDER]       starts what is not running; then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm/local_cluster.sh status [FOLDER]   what runs; ends with 1 when something does not
#   slurm/local_cluster.sh down [FOLDER]     stops what it started, and nothing else; the folder stays
#
# FOLDER (/tmp/sweetspot-slurm-USER) holds everything: configuration, keys, sockets, logs, state and database. Needs the
# packages slurm-wlm munge slurmdbd mariadb-server of Debian 12 or 13, and neither systemd nor running services. As root
# jobs of every user run, else one's own. The GPUs are /dev/null: they are scheduled and named, and compute nothing.
# CPUS and MEMORY_MB (4, 16000) are what each node claims to have.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
COMMAND=${1:-}
DIR=${2:-/tmp/sweetspot-slurm-$(id -un)}
ME=$(id -un)
NODES="node1 node2"
PARTS="munged mariadbd slurmdbd slurmctld $NODES"

fail() { printf 'local_cluster: %s\n' "$*" >&2; exit 1; }
case $COMMAND in up | down | status) ;; *) fail "say up, down or status, got '$COMMAND'" ;; esac
case $DIR in /*) ;; *) DIR=$PWD/$DIR ;; esac
[ ${#DIR} -le 70 ] || fail "FOLDER must have at most 70 characters (it holds sockets), got ${#DIR}"
export SLURM_CONF=$DIR/slurm.conf
export SWEETSPOT_CLUSTER=$DIR # in the environment of a daemon: it is ours

# Whether the process of a part runs and is the one that we started.
runs() {
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
        cat "/proc/$pid/environ" 2>/dev/null | tr '\0' '\n' | grep -qxF "SWEETSPOT_CLUSTER=$DIR"
}

# Try a command every 0.2 s until it succeeds.     await SECONDS WHAT COMMAND...
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what did not come up; see $DIR/log"
        sleep 0.2
    done
}

configure() {
    local ports host munge version
    mkdir -p "$DIR"/{run,log,state,db,spool/node1,spool/node2}
    chmod 755 "$DIR" "$DIR/run"
    read -r -a ports < <(python3 -c '
import socket
held = [socket.socket() for _ in range(5)]
[one.bind(("127.0.0.1", 0)) for one in held]
print(*[one.getsockname()[1] for one in held])')
    host=$(hostname -s)
    munge=$DIR/run/munge.socket
    version=$(slurmctld -V | tr -dc '0-9. ' | tr -d ' ' | cut -d. -f1,2)
    (umask 077; head -c 1024 /dev/urandom >"$DIR/munge.key")
    ln -sf /dev/null "$DIR/gpu0"; ln -sf /dev/null "$DIR/gpu1"
    printf 'Name=gpu File=%s/gpu[0-1]\n' "$DIR" >"$DIR/gres.conf"
    # slurmd of 23.11 and later sets cgroups up even where nothing uses them
    case $(printf '23.11\n%s\n' "$version" | sort -V | head -1) in 23.11) echo 'CgroupPlugin=disabled' >"$DIR/cgroup.conf" ;; esac
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=sweetspot
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
# a short life of credentials: a requeued job starts again after seconds, not minutes
AuthInfo=socket=$munge,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=5
ReturnToService=2
MinJobAge=300
KillWait=5
JobRequeue=1
MaxArraySize=2000
# memory limits without cgroups: looked at every second, and the job that passes its own is killed
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[1]}
AccountingStoragePass=$munge
GresTypes=gpu
SlurmdParameters=config_overrides
DefMemPerCPU=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=${CPUS:-4} RealMemory=${MEMORY_MB:-16000} Gres=gpu:2
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[3]} CPUs=${CPUS:-4} RealMemory=${MEMORY_MB:-16000} Gres=gpu:2
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=1-0 PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=node1,node2 MaxTime=1-0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
CONF
    (umask 077; cat >"$DIR/slurmdbd.conf") <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=${ports[1]}
SlurmUser=$ME
AuthType=auth/munge
AuthInfo=socket=$munge
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StoragePort=${ports[4]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
    printf '[client]\nsocket=%s/run/mariadb.socket\n' "$DIR" >"$DIR/my.cnf"
    echo "${ports[4]}" >"$DIR/db.port"
}

sql() { mariadb --defaults-file="$DIR/my.cnf" --user="${DB_USER:-$ME}" "$@"; }

start_munged() {
    munged --socket="$DIR/run/munge.socket" --key-file="$DIR/munge.key" --pid-file="$DIR/run/munged.pid" \
        --log-file="$DIR/log/munged.log" --seed-file="$DIR/state/munge.seed" --force >>"$DIR/log/munged.out" 2>&1
    await 20 munged munge --socket="$DIR/run/munge.socket" -n
}

start_mariadbd() {
    [ -d "$DIR/db/mysql" ] || mariadb-install-db --no-defaults --user="$ME" --datadir="$DIR/db" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$ME" >>"$DIR/log/mariadb.log" 2>&1
    setsid mariadbd --no-defaults --user="$ME" --datadir="$DIR/db" --socket="$DIR/run/mariadb.socket" \
        --port="$(cat "$DIR/db.port")" --bind-address=127.0.0.1 --pid-file="$DIR/run/mariadbd.pid" \
        --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --log-error="$DIR/log/mariadb.log" \
        </dev/null >>"$DIR/log/mariadb.log" 2>&1 &
    await 60 mariadbd sql -e 'select 1'
    sql -e "create database if not exists slurm_acct_db;
            create user if not exists slurm@localhost identified by 'slurm';
            grant all on slurm_acct_db.* to slurm@localhost;"
}

start_slurmdbd() {
    MYSQL_UNIX_PORT=$DIR/run/mariadb.socket slurmdbd >>"$DIR/log/slurmdbd.out" 2>&1
    await 60 slurmdbd timeout 5 sacctmgr -n show cluster
    timeout 30 sacctmgr -n show cluster | grep -q sweetspot || timeout 60 sacctmgr -i add cluster sweetspot >>"$DIR/log/slurmdbd.out"
}

start_slurmctld() {
    slurmctld >>"$DIR/log/slurmctld.out" 2>&1
    await 30 slurmctld timeout 5 scontrol ping
}

start() {
    case $1 in
    node*) slurmd -N "$1" >>"$DIR/log/$1.out" 2>&1 ;;
    *) "start_$1" ;;
    esac
}

ready() { [ "$(timeout 5 sinfo -h -N -o '%T' -p main | grep -cE '^(idle|mixed|allocated|completing)')" = 2 ]; }

up() {
    for one in munged mariadbd slurmdbd slurmctld slurmd; do
        command -v $one >/dev/null ||
            fail "$one is missing: apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"
    done
    [ -e "$DIR/ready" ] || configure
    for one in $PARTS; do runs "$one" || start "$one"; done
    await 30 "the nodes" ready
    touch "$DIR/ready"
    printf 'export SLURM_CONF=%s\n' "$SLURM_CONF"
}

# End a part that we started: ask, wait, then force.
stop() {
    local pid end=$((SECONDS + 15))
    runs "$1" || return 0
    pid=$(cat "$DIR/run/$1.pid")
    kill "$pid"
    while runs "$1" && [ $SECONDS -lt $end ]; do sleep 0.1; done
    ! runs "$1" || kill -9 "$pid"
}

down() {
    [ -d "$DIR" ] || return 0
    if runs slurmctld; then
        timeout 20 scancel --user="$ME" || true
        for _ in $(seq 75); do [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.2; done
    fi
    for one in node2 node1 slurmctld slurmdbd mariadbd munged; do stop "$one"; done
    for one in $(pgrep -f "^/bin/[a-z]+ $DIR/spool/node[12]/job[0-9]+/slurm_script" || true); do # jobs that did not end
        kill -9 "$(ps -o ppid= -p "$one" | tr -d ' ')" "$one" || true
    done
}

status() {
    local missing=0
    for one in $PARTS; do
        if runs "$one"; then printf '%-10s runs (process %s)\n' "$one" "$(cat "$DIR/run/$one.pid")"; else
            printf '%-10s does not run\n' "$one"
            missing=1
        fi
    done
    [ $missing = 1 ] || timeout 10 sinfo -N -o '%N %P %T %c CPUs %m MB %G'
    return $missing
}

$COMMAND
