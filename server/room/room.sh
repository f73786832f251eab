#!/bin/sh
# Start or stop the room: `room.sh start`, `stop`, or `restart`, after which open JupyterLabs go on. As root.
set -eu
here=/opt/workshop/server/room
cd /var/lib/workshop-room
PATH=/opt/workshop/.venv/bin:$PATH
ask() { supervisorctl --configuration "$here/supervisord.conf" "$@"; }

# A bridge whose ports do not see each other: a person reaches the hub and the world, and nobody else.
network() {
  ip link show room0 >/dev/null 2>&1 || ip link add room0 type bridge
  ip addr replace 10.77.0.1/16 dev room0
  ip link set room0 up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  for rule in "POSTROUTING --table nat --source 10.77.0.0/16 ! --out-interface room0 --jump MASQUERADE" \
    "FORWARD --in-interface room0 ! --out-interface room0 --jump ACCEPT" \
    "FORWARD --out-interface room0 --match conntrack --ctstate ESTABLISHED,RELATED --jump ACCEPT"; do
    # shellcheck disable=SC2086
    iptables --check $rule 2>/dev/null || iptables --insert $rule
  done
}

case ${1:-} in
  start | restart)
    network
    ask pid >/dev/null 2>&1 && ask shutdown >/dev/null && sleep 3
    supervisord --configuration "$here/supervisord.conf"
    ;;
  stop)
    ask shutdown || true
    for namespace in $(ip netns list | sed -n 's/^\(room-[0-9]*\).*/\1/p'); do
      "$here/person.sh" leave "$namespace"
      ip netns delete "$namespace"
    done
    ip link delete room0
    ;;
  *) echo "room.sh start | stop | restart" >&2; exit 2 ;;
esac
