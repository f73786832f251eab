#!/bin/sh
# Manages a person's account, network and processes, as root. Called by the hub.
#   person.sh enter NAME      create or repair the account, network, folders and clone; print the address
#   person.sh run NAME ...    run a command as the person, in the person's network and limits
#   person.sh size NAME       print the MB and the number of the person's files, then those of deleted files that are still open
#   person.sh leave NAME      end all processes of the person
set -eu
umask 077 # others could hold a lock that they can open
here=$(dirname "$0")
# shellcheck source=server/room/settings.sh
. "$here/settings.sh"
fail() { printf '%s\n' "$1" "Next: $2" >&2; exit 1; }

command=$1 name=$2
case $name in '' | *[!a-z0-9_-]*) fail "Invalid name: '$name'" "use lowercase letters, digits, - and _" ;; esac
if ! id "$name" >/dev/null 2>&1; then
  [ "$command" = enter ] && [ "$(setting open)" = True ] || fail "There is no account $name." "log in with another name"
  exec 8>"$RUN/accounts.lock"
  flock --wait 60 8 || fail "Another account is being created." "try again in a few minutes"
  make_account "$name" 8>&-
  exec 8>&-
fi
number=$(id -u "$name")
[ "$number" -ge "$FIRST_UID" ] && [ "$number" -le "$LAST_UID" ] ||
  fail "The name $name is taken: it is an account of this machine." "log in with another name"
namespace=room-$number address=10.77.$((number / 256)).$((number % 256)) temporary=$STATE/temporary/$number
home=$(getent passwd "$name" | cut -d: -f6)
group=/sys/fs/cgroup/workshop-room/$name

run() {
  [ -e "/run/netns/$namespace" ] || fail "$name has not logged in since the room started." "log in as $name"
  install --directory --mode 700 "$temporary"
  install --directory --mode 1777 "$temporary/tmp" "$temporary/var"
  memory=$(numfmt --from=iec "$(setting memory)") processes=$(setting processes)
  # With cgroups v2 (not available in every container) the limits hold for all processes together.
  all="+memory +cpu +pids"
  if grep -qsw memory /sys/fs/cgroup/cgroup.controllers && mkdir -p "$group" &&
    echo "$all" >/sys/fs/cgroup/cgroup.subtree_control && echo "$all" >"${group%/*}/cgroup.subtree_control"; then
    echo "$memory" >"$group/memory.max"
    echo "$processes" >"$group/pids.max"
    [ ! -e "$group/memory.swap.max" ] || echo 0 >"$group/memory.swap.max"
    echo $$ >"$group/cgroup.procs"
    limits=""
  else
    limits="prlimit --data=$memory --nproc=$processes"
  fi
  echo 500 >/proc/self/oom_score_adj # killed before the hub if memory runs out
  # shellcheck disable=SC2086,SC2016 # the limits are words; the inner shell expands its own variables
  exec nsenter --net="/run/netns/$namespace" unshare --mount --ipc --propagation private $limits sh -euc '
    mount --bind "$1/tmp" /tmp
    mount --bind "$1/var" /var/tmp
    mount --types tmpfs --options "mode=1777,nosuid,nodev,size=$2" tmpfs /dev/shm
    mount --types devpts --options newinstance,ptmxmode=0666,mode=620,gid=5,max=64 devpts /dev/pts # the machine has 4096 in all
    mount --bind /dev/pts/ptmx /dev/ptmx
    # systemd-resolved listens on the loopback of the machine, unreachable from here; this file has its upstream servers.
    [ ! -e /run/systemd/resolve/resolv.conf ] || mount --bind /run/systemd/resolve/resolv.conf /etc/resolv.conf
    name=$3 home=$4
    shift 4
    exec setpriv --reuid "$name" --regid "$name" --init-groups env HOME="$home" USER="$name" LOGNAME="$name" \
      SHELL=/bin/bash sh -c '\''cd ~/workshop 2>/dev/null || cd ~; exec "$@"'\'' sh "$@"' \
    sh "$temporary" $((memory / 4)) "$name" "$home" "$@"
}

# Create the person's network namespace, with its own loopback: all servers have their usual ports.
connect() {
  ip -netns "$namespace" route show default 2>/dev/null | grep -q via && return # complete: this is the last step below
  ip netns delete "$namespace" 2>/dev/null || true
  ip link delete "$namespace" 2>/dev/null || true
  ip netns add "$namespace"
  ip link add "$namespace" type veth peer name eth0 netns "$namespace"
  ip link set "$namespace" master room0
  bridge link set dev "$namespace" isolated on
  ip link set "$namespace" up
  ip -netns "$namespace" link set lo up
  ip netns exec "$namespace" sh -c '! cd /proc/sys/net/ipv6/conf/eth0 2>/dev/null || echo 1 >disable_ipv6'
  ip -netns "$namespace" address add "$address/16" dev eth0
  ip -netns "$namespace" link set eth0 up
  ip -netns "$namespace" route add default via 10.77.0.1
}

# Runs as the person, without the person's git configuration. Each step may have been interrupted before.
# shellcheck disable=SC2016
CLONE='
  cd
  export GIT_CONFIG_GLOBAL=/dev/null GIT_TEMPLATE_DIR= GIT_TERMINAL_PROMPT=0 GIT_COMMITTER_EMAIL="$USER@localhost" # avoids a DNS lookup
  if ! git --git-dir=workshop/.git cat-file -e "HEAD^{tree}" 2>/dev/null; then
    rm -rf workshop.new
    git clone --quiet --shared /opt/workshop workshop.new
    ln -s /opt/workshop/.venv workshop.new/.venv
    echo WORKSHOP_DASK_WORKERS=1 >workshop.new/.env
    cp /opt/workshop/2_tracking/germany.csv workshop.new/2_tracking
    [ ! -e workshop ] && [ ! -L workshop ] || mv workshop "workshop.before-$(date +%Y-%m-%d-%H%M%S)"
    mv --no-target-directory workshop.new workshop
  fi
  [ -e workshop/.venv ] || ln -sfn /opt/workshop/.venv workshop/.venv
  # Reuse the prepared environment of chapter 3; without it, MLflow would build one.
  mkdir -p .mlflow/envs && ln -sfn /opt/workshop/.venv/mlflow/* .mlflow/envs || true'

case $command in
  enter)
    exec 9>"$RUN/$number.lock"
    flock --wait 200 9 || fail "Another log-in of $name is in progress." "try again in a few minutes"
    # `ip netns` does not support concurrent calls. The links are in the machine's network namespace, not the hub's.
    exec 8>"$RUN/network.lock"
    flock --wait 60 8 || fail "Another network is being created." "try again in a few minutes"
    nsenter --net=/proc/1/ns/net "$0" connect "$name" 8>&- 9>&-
    exec 8>&-
    install --directory --mode 700 --owner "$name" --group "$name" "$home"
    limit_disk "$name"
    # The person's programs can write to this command's output, so keep it out of stdout, which is the address.
    "$0" run "$name" timeout --kill-after 5 150 sh -ec "$CLONE" 9>&- </dev/null >&2 ||
      fail "The folder of $name could not be prepared (see above)." "free disk space, or tell the instructor"
    echo "$address"
    ;;
  connect) connect ;;
  run)
    shift 2
    run "$@"
    ;;
  size)
    # crontab and at store files in a spool folder.
    spool=$(find /var/spool -xdev -user "$number" 2>/dev/null || true)
    # shellcheck disable=SC2086 # a word for each file
    for unit in -m --inodes; do du -sxc $unit "$home" "$temporary" $spool 2>/dev/null | tail -n 1 | cut -f 1; done
    # `du` does not see deleted files that are still open; nothing sees those in transit through a socket.
    # shellcheck disable=SC2046 # a word for each folder
    ! grep -rqs '^scm_fds:.*[1-9]' /dev/null $(pgrep --uid "$number" | sed 's|.*|/proc/&/task/*/fdinfo|') ||
      fail "Programs of $name send each other open files, so their size is unknown." "person.sh leave $name"
    disks=$(stat --format %d /home "$STATE" | paste --serial --delimiters ' ')
    # shellcheck disable=SC2046 # a word for each folder
    find -L /dev/null $(pgrep --uid "$number" | sed 's|.*|/proc/&/task/*/fd /proc/&/map_files|') -maxdepth 1 -type f -links 0 \
      -printf '%D %i %b\n' 2>/dev/null | sort -u |
      awk -v disks=" $disks " 'index(disks, " " $1 " ") {blocks += $3; files += 1} END {print int(blocks / 2048), files + 0}'
    ;;
  leave)
    # By user id, since a process can leave its namespace, cgroup or terminal; all at once, since processes fork. The sender's
    # real user id differs and only its effective id is the person's, so the person's programs cannot signal it.
    for signal in 15 9 9 9; do
      pgrep --uid "$number" >/dev/null || break
      python3 -Ic 'import os, sys
number, signal, own = map(int, sys.argv[1:])
os.setgroups([])
os.setresuid(own, number, own)
os.kill(-1, signal)' "$number" $signal $((LAST_UID + 1)) 2>/dev/null || true # no process was left
      for _ in 1 2 3 4 5 6 7 8 9 10; do
        ! pgrep --uid "$number" >/dev/null || sleep 1
      done
    done
    ! pgrep --uid "$number" >/dev/null || fail "Processes of $name cannot be ended." "ps -u $name"
    rm -rf "$temporary"
    ;;
  *) fail "Unknown command: person.sh $command" "person.sh enter | run | size | leave NAME" ;;
esac
