#!/usr/bin/env bash
# Make this machine a room: everybody logs in with a browser and gets JupyterLab with the workshop. As root, on Debian or
# Ubuntu. Typed again, it takes what is committed here by now, and keeps accounts, work and passwords.
set -euo pipefail
usage="server/room/setup.sh --people FILE | --open
  --people FILE                   one name a line; an account with a password is made for each
  --open [--password PASSWORD]    who comes chooses a name, and gives the room's password; by default one is made
  --host NAME                     how browsers call this machine
  --port 443                      of the page
  --certificate FILE --key FILE   your own, in PEM; by default they are made
  --memory 4G                     of a person, at most"
fail() { printf 'Not set up: %s\n  next: %s\n' "$1" "$2" >&2; exit 1; }

people="" open="" password="" host=$(hostname) port=443 certificate="" key="" memory=4G
while [ $# -gt 0 ]; do
  case $1 in
    --open) open=yes ;;
    --people | --password | --host | --port | --certificate | --key | --memory)
      [ $# -gt 1 ] || fail "$1 needs a value" "$usage"
      printf -v "${1#--}" %s "$2" && shift ;;
    -h | --help) echo "$usage" && exit ;;
    *) fail "$1 is no option" "$usage" ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || fail "accounts and networks need root" "sudo $0 ..."
[ -n "$people" ] || [ -n "$open" ] || fail "nobody may come in" "$usage"
[ -z "$people" ] || [ -r "$people" ] || fail "$people cannot be read" "a file with one name a line"
wrong=$([ -z "$people" ] || grep -vxE '[a-z][a-z0-9_-]{0,30}|' "$people" || true)
[ -z "$wrong" ] || fail "no names of accounts: ${wrong//$'\n'/, }" "small letters, digits, - and _; a letter first, 31 at most"
[ -z "$password" ] || [ ${#password} -ge 8 ] || fail "the password has ${#password} characters" "8 or more"
[[ $memory =~ ^[0-9]+[GM]$ ]] || fail "--memory $memory" "a number with G or M, such as 4G"
[[ $port =~ ^[0-9]{1,5}$ ]] || fail "--port $port" "a number up to 65535"
[ -z "$certificate$key" ] || { openssl x509 -noout -in "$certificate" && openssl pkey -noout -in "$key"; } 2>/dev/null ||
  fail "certificate or key cannot be read: $certificate, $key" "--certificate FILE --key FILE, both in PEM"

packages=()
for pair in git:git make:make ip:iproute2 iptables:iptables openssl:openssl curl:curl setpriv:util-linux; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
[ ${#packages[@]} -eq 0 ] || { apt-get update -qq &&
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; }

echo "The environment: /opt/workshop" >&2
umask 022
here=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
for folder in /opt/workshop /opt/workshop/.git; do # root's, and others clone from there
  git config --system --get-all safe.directory | grep -qx $folder || git config --system --add safe.directory $folder
done
[ -d /opt/workshop ] || git clone --quiet --no-hardlinks "$here" /opt/workshop
[ "$here" = /opt/workshop ] || { cd /opt/workshop && git fetch --quiet "$here" HEAD && git checkout --quiet --force -B main FETCH_HEAD; }
export PATH=/opt/workshop/.venv/bin:$PATH
make --no-print-directory -C /opt/workshop .venv/room

umask 077
mkdir -p /var/lib/workshop-room /etc/workshop-room && cd /etc/workshop-room
getent group workshop-room >/dev/null || groupadd workshop-room
word() { python3 -c "import secrets; print(secrets.token_urlsafe($1))"; }
for secret in proxy.token instructor.password; do [ -s $secret ] || word 32 >$secret; done
[ -z "$password" ] || echo "$password" >room.password
[ -n "$people" ] || [ -s room.password ] || word 9 >room.password
for name in $([ -z "$people" ] || cat "$people") ${people:+instructor}; do
  if ! id "$name" >/dev/null 2>&1; then
    useradd --create-home --shell /bin/bash --groups workshop-room "$name" && echo "$name $(word 9)" >>passwords.txt
    tail -n 1 passwords.txt | tr ' ' : | chpasswd
  fi
done
if [ -n "$certificate" ]; then
  cp "$certificate" room.pem && cp "$key" room.key
elif [ ! -s room.pem ]; then
  openssl req -x509 -newkey rsa:2048 -noenc -days 365 -subj "/CN=$host" -addext "subjectAltName=DNS:$host" \
    -keyout room.key -out room.pem 2>/dev/null
fi
names=$([ -z "$people" ] || tr '\n' ' ' <"$people")
echo "{\"port\": $port, \"memory\": \"$memory\", \"people\": \"$names\"}" >room.json

/opt/workshop/server/room/room.sh start
waited=0
until curl --silent --insecure --fail --output /dev/null "https://127.0.0.1:$port/hub/health"; do
  sleep 1
  [ $((++waited)) -lt 120 ] || fail "the hub does not answer" "see /var/lib/workshop-room/hub.log and proxy.log"
done
[ "$port" = 443 ] || host=$host:$port
if [ -n "$people" ]; then file=passwords.txt admin=passwords.txt; else file=room.password admin=instructor.password; fi
echo "The room:       https://$host, ${people:+names and passwords}${open:+any name, the password} in /etc/workshop-room/$file"
echo "The instructor: https://$host/services/board, the name instructor, the password in /etc/workshop-room/$admin"
