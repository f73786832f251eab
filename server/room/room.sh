#!/bin/sh
# Start or stop the room, as root. JupyterLab servers keep running during a restart.
#   room.sh start | restart | stop
#   room.sh password NAME     set a new password (see /etc/workshop-room/passwords.txt); ends the person's server and sessions
set -eu
here=/opt/workshop/server/room
# shellcheck source=server/room/settings.sh
. "$here/settings.sh"
fail() { printf '%s\n' "$1" "  next: $2" >&2; exit 1; }
supervisor() { supervisorctl --configuration "$here/supervisord.conf" "$@"; }
in_hub() { nsenter --net=/run/netns/room-hub "$@"; }

# A bridge with isolated ports. The hub has its own network namespace, which no person can enter.
network() {
  ip link show room0 >/dev/null 2>&1 || ip link add room0 type bridge
  [ ! -e /proc/sys/net/ipv6/conf/room0 ] || echo 1 >/proc/sys/net/ipv6/conf/room0/disable_ipv6
  ip address replace 10.77.0.1/16 dev room0
  ip link set room0 up
  [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || echo 1 >/proc/sys/net/ipv4/ip_forward
  if ! ip -netns room-hub address show eth0 2>/dev/null | grep -q 10.77.0.2; then
    ip netns delete room-hub 2>/dev/null || true
    ip link delete room-hub 2>/dev/null || true # a deleted namespace remains while a process is in it
    ip netns add room-hub
    ip link add room-hub type veth peer name eth0 netns room-hub
    ip link set room-hub master room0 up
    ip -netns room-hub link set lo up
    in_hub sh -c '! cd /proc/sys/net/ipv6/conf/eth0 2>/dev/null || echo 1 >disable_ipv6'
    ip -netns room-hub link set eth0 up
    ip -netns room-hub address add 10.77.0.2/16 dev eth0
  fi
  in_hub nft --file "$here/hub.nft"
  resolvers=/run/systemd/resolve/resolv.conf
  [ -e $resolvers ] || resolvers=/etc/resolv.conf
  names=$(sed -n 's/^nameserver *\([0-9][0-9.]*\)$/\1/p' $resolvers | paste --serial --delimiters ,)
  reach=$(setting reach) # 10.77.0.1 as placeholder: a set must not be empty
  nft --define "PORT=$(setting port)" --define "PEOPLE=$FIRST_UID-$LAST_UID" --define "RESOLVERS={ ${names:-10.77.0.1} }" \
    --define "REACH={ ${reach:-10.77.0.1} }" --file "$here/people.nft"
}

# Check the process behind the port, too: any program may listen on a free port.
is_up() {
  [ "$(supervisor status | grep -c RUNNING)" = 3 ] || return 1
  in_hub curl --silent --fail --output /dev/null http://10.77.0.2:8081/hub/health || return 1
  ss --no-header --listening --tcp --numeric --processes "sport = :$(setting port)" | grep -q "pid=$(supervisor pid nginx),"
}

wait_until_up() {
  waited=0
  until is_up; do
    sleep 1
    [ $((waited += 1)) -lt 120 ] || {
      supervisor status >&2 || true
      for name in nginx proxy hub; do tail --lines=3 "$STATE/$name.log" >&2; done
      fail "The room does not respond (its last log lines are above)." "run ss -ltnp to see which process is using port $(setting port)"
    }
  done
}

start() {
  mountpoint --quiet "$RUN" || { mkdir -p "$RUN" && mount --types tmpfs --options mode=711,size=256m tmpfs "$RUN"; }
  install --directory --mode 750 --group www-data "$RUN/page"
  network
  cd "$STATE"
  if supervisor pid >/dev/null 2>&1; then
    supervisor reread >/dev/null
    supervisor update >/dev/null
    nginx -tq -e stderr -c "$here/nginx.conf" || fail "nginx rejects its configuration (see above)." "run setup.sh with --certificate and --key"
    supervisor restart hub proxy >&2
    supervisor signal HUP nginx >/dev/null 2>&1 || supervisor start nginx >/dev/null || true # HUP: nginx keeps its port
  else
    supervisord --configuration "$here/supervisord.conf"
  fi
  wait_until_up
}

case ${1:-} in
  start | restart) start ;;
  stop)
    if pid=$(supervisor pid 2>/dev/null); then
      supervisor shutdown >/dev/null
      while kill -0 "$pid" 2>/dev/null; do sleep 1; done
    fi
    getent passwd | awk -F: -v first=$FIRST_UID -v last=$LAST_UID '$3 >= first && $3 <= last {print $1}' |
      while read -r name; do timeout 60 "$here/person.sh" leave "$name" </dev/null || echo "$name still has processes" >&2; done
    for namespace in $(ip netns list | sed -n 's/^\(room-[0-9a-z]*\).*/\1/p'); do ip netns delete "$namespace"; done
    ip link delete room0 2>/dev/null || true
    nft delete table inet workshop_room 2>/dev/null || true
    umount "$RUN" 2>/dev/null || true
    ;;
  password)
    id -nG "${2:-}" 2>/dev/null | grep -qw workshop-room || fail "'${2:-}' is not a user of the room." "$0 password NAME"
    word=$(python3 -Ic "import secrets; print(secrets.token_urlsafe(9))")
    echo "$2:$word" | chpasswd
    umask 077
    touch "$SETTINGS/passwords.txt"
    { grep -v "^$2 " "$SETTINGS/passwords.txt" || true; echo "$2 $word"; } >"$SETTINGS/passwords.new"
    mv "$SETTINGS/passwords.new" "$SETTINGS/passwords.txt"
    if supervisor pid >/dev/null 2>&1; then # stop the hub: it may be starting the person's server or serving a page
      supervisor stop hub >/dev/null
      "$here/person.sh" leave "$2" || true # it has reported remaining processes; the others need the hub
      python3 -Ic 'import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as hub:
    hub.execute("PRAGMA foreign_keys = ON")
    hub.execute("DELETE FROM users WHERE name = ?", sys.argv[2:])' "$RUN/jupyterhub.sqlite" "$2"
      supervisor start hub >/dev/null
      wait_until_up
    fi
    echo "The new password of $2 is in $SETTINGS/passwords.txt"
    ;;
  *) fail "Unknown command: room.sh ${1:-}" "room.sh start | restart | stop | password NAME" ;;
esac
