#!/bin/sh
# What the hub types, as root, before a person's JupyterLab starts, and after it has ended.
#   person.sh enter NAME        account, network and clone; prints the name of the network namespace and the address
#   person.sh run NAME ...      becomes the person, in that network, and runs a command
#   person.sh leave NAMESPACE   ends every process in it
set -eu

if [ "$1" = run ]; then
  name=$2 && shift 2
  exec ip netns exec "room-$(id -u "$name")" setpriv --reuid "$name" --regid "$name" --init-groups "$@"
fi

if [ "$1" = leave ]; then
  for signal in TERM TERM KILL; do
    processes=$(ip netns pids "$2" 2>/dev/null) && [ -n "$processes" ] || exit 0
    # shellcheck disable=SC2086
    kill -s "$signal" $processes 2>/dev/null || true
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      [ -n "$(ip netns pids "$2")" ] || exit 0
      sleep 1
    done
  done
  exit 0
fi

name=$2
exec 9>/run/workshop-room.lock && flock 9 # twenty may come at once, and `ip netns` is for one at a time
id "$name" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups workshop-room "$name"
id -nG "$name" | tr ' ' '\n' | grep -qx workshop-room || {
  echo "The name $name is taken: it is an account of this machine. Next: log in with another name." >&2
  exit 1
}
number=$(id -u "$name")
namespace=room-$number address=10.77.$((number / 256)).$((number % 256))

# A network of their own: every server has its usual port, and listens on a loopback that nobody else has.
if ! ip netns list | grep -qw "$namespace"; then
  ip netns add "$namespace"
  ip link add "$namespace" type veth peer name eth0 netns "$namespace"
  ip link set "$namespace" master room0
  bridge link set dev "$namespace" isolated on
  ip link set "$namespace" up
  ip -netns "$namespace" link set lo up
  ip -netns "$namespace" addr add "$address/16" dev eth0
  ip -netns "$namespace" link set eth0 up
  ip -netns "$namespace" route add default via 10.77.0.1
fi
# A name server on this machine's loopback cannot be reached from there; systemd-resolved has the others in a file.
mkdir -p "/etc/netns/$namespace"
resolvers=/run/systemd/resolve/resolv.conf
[ -e $resolvers ] || resolvers=/etc/resolv.conf
cat $resolvers >"/etc/netns/$namespace/resolv.conf"

home=$(getent passwd "$name" | cut -d: -f6)
chmod 700 "$home"
[ -e "$home/workshop" ] || runuser --user "$name" -- sh -ec '
  cd; umask 077
  git clone --quiet --shared /opt/workshop workshop.new
  ln -s /opt/workshop/.venv workshop.new/.venv
  echo WORKSHOP_DASK_WORKERS=1 >workshop.new/.env
  cp /opt/workshop/2_tracking/germany.csv workshop.new/2_tracking
  mkdir -p .mlflow/envs && ln -s /opt/workshop/.venv/mlflow/* .mlflow/envs # chapter 3 finds its environment made
  mv workshop.new workshop'
echo "$namespace $address"
