#!/usr/bin/env bash
# Set up this machine as a room: people log in with a browser and get JupyterLab with the workshop. As root, on Debian or
# Ubuntu. Run it again to install the latest commit; accounts, work and passwords are kept.
set -euo pipefail
usage="server/room/setup.sh --people FILE | --open
  --people FILE                   a file with one name per line; each gets an account with a password
  --open [--password-file FILE]   anyone with the room's password may log in by any name; default: a random password
  --host NAME                     the machine's name in the browser's address
  --port 443                      HTTPS port
  --certificate FILE --key FILE   your own certificate and its key, in PEM; default: self-signed
  --subdomains                    serve each person's pages from NAME.HOST; needs a wildcard DNS name and certificate
  --memory 4G --processes 1000    limits per person
  --disk 5G                       limit per person; needs quotas on the file system of /home
  --reach NETWORK                 a private network that people may reach, such as 192.168.5.0/24; may be repeated"
fail() { printf 'Not set up: %s\n  next: %s\n' "$1" "$2" >&2; exit 1; }

people="" open="" password_file="" host=$(hostname) port=443 certificate="" key="" subdomains="" memory=4G processes=1000 disk="" reach=""
while [ $# -gt 0 ]; do
  case $1 in
    --open | --subdomains) printf -v "${1#--}" yes ;;
    --people | --password-file | --host | --port | --certificate | --key | --memory | --processes | --disk | --reach)
      [ $# -gt 1 ] || fail "$1 needs a value" "$usage"
      variable=${1#--}
      [ "$1" != --reach ] || set -- "$1" "${reach:+$reach, }$2" "${@:3}"
      printf -v "${variable//-/_}" %s "$2" && shift
      ;;
    -h | --help) echo "$usage" && exit ;;
    *) fail "unknown option $1" "$usage" ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || fail "creating accounts and networks needs root" "sudo $0 ..."
[ -n "$people" ] || [ -n "$open" ] || fail "either --people or --open is needed" "$usage"
[ -z "$people" ] || [ -z "$open" ] || fail "--people and --open exclude each other" "use only one of them"
[ -z "$people" ] || [ -r "$people" ] || fail "$people cannot be read" "choose a readable file with one name per line"
[ -z "$password_file" ] || [ -r "$password_file" ] || fail "$password_file cannot be read" "choose a readable file with the password"
names=$([ -z "$people" ] || tr -s '[:space:]' '\n' <"$people" | grep . || true)
wrong=$(grep -vxE '[a-z][a-z0-9_-]{0,30}' <<<"${names:-a}" || true)
[ -z "$wrong" ] || fail "invalid names: ${wrong//$'\n'/, }" "use at most 31 lowercase letters, digits, - and _, and start with a letter"
[[ $memory =~ ^[0-9]+[GM]$ ]] || fail "invalid value: --memory $memory" "choose a number with G or M, such as 4G"
[[ $processes =~ ^[0-9]+$ ]] || fail "invalid value: --processes $processes" "choose a number, such as 1000"
[[ $disk =~ ^([0-9]+[GM])?$ ]] || fail "invalid value: --disk $disk" "choose a number with G or M, such as 5G"
[[ $port =~ ^[0-9]{1,5}$ ]] && [ "$port" -gt 0 ] && [ "$port" -le 65535 ] || fail "invalid value: --port $port" "choose a number from 1 to 65535"
host=${host,,} address=$host && [ "$port" = 443 ] || address=$host:$port
[[ $host =~ ^[a-z0-9.-]+$ ]] && [[ -z $subdomains || $host =~ [a-z]$ ]] || fail "invalid value: --host $host" "choose a name, or without --subdomains an IP address, and do not add a port"
for file in password_file certificate key; do # resolve now: the script changes its folder
  [ -z "${!file}" ] || printf -v $file %s "$(realpath "${!file}")"
done
if [ -n "$certificate$key" ]; then
  of_key=$(openssl pkey -pubout -in "$key" 2>/dev/null) &&
    [ "$(openssl x509 -pubkey -noout -in "$certificate" 2>/dev/null)" = "$of_key" ] ||
    fail "certificate and key cannot be read, or do not match: $certificate, $key" "use --certificate FILE and --key FILE, both in PEM"
fi
room=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=server/room/settings.sh
. "$room/settings.sh"
is_room_account() { [ "$(id -u "$1")" -ge $FIRST_UID ] && [ "$(id -u "$1")" -le $LAST_UID ]; }
for name in $names instructor; do
  ! id "$name" >/dev/null 2>&1 || is_room_account "$name" ||
    fail "$name is an account of this machine (user id $(id -u "$name"))" "choose another name in $people"
done

packages=()
for pair in git:git make:make ip:iproute2 nft:nftables nginx:nginx openssl:openssl curl:curl pgrep:procps setpriv:util-linux; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
[ -z "$disk" ] || command -v setquota >/dev/null || packages+=(quota)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
  echo "Installing Debian packages: ${packages[*]}" >&2
  # Debian starts nginx with a default page as soon as it is installed.
  command -v nginx >/dev/null || [ ! -d /run/systemd/system ] || systemctl --quiet mask nginx
  { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } \
    >/dev/null || fail "${packages[*]} cannot be installed (see apt's messages above)" "apt-get update; apt-get install ${packages[*]}"
fi
python3 -Ic 'import ipaddress, sys; [ipaddress.IPv4Network(each) for each in sys.argv[1].split(", ") if each]' "$reach" 2>/dev/null ||
  fail "invalid value: --reach $reach" "choose a network, such as 192.168.5.0/24"
if [ -n "$disk" ] && ! quotaon -pu "$(findmnt -no TARGET -T /home)" 2>/dev/null | grep -q "is on"; then
  fail "--disk $disk: the file system of /home has no quotas" "mount the file system with usrquota, then type quotacheck and quotaon; or omit --disk"
fi

echo "Installing into /opt/workshop" >&2
umask 022
here=$(git -C "$room" rev-parse --show-toplevel)
for folder in /opt/workshop /opt/workshop/.git; do # owned by root; people clone from it
  git config --system --get-all safe.directory | grep -qx $folder || git config --system --add safe.directory $folder
done
[ -d /opt/workshop ] || git clone --quiet --no-hardlinks "$here" /opt/workshop
[ "$here" = /opt/workshop ] || git -C /opt/workshop fetch --quiet "$here" HEAD
[ "$here" = /opt/workshop ] || git -C /opt/workshop checkout --quiet --force -B main FETCH_HEAD
make --no-print-directory -C /opt/workshop .venv/room
find /opt/workshop -perm /022 ! -type l -exec chmod go-w {} +
find /opt/workshop/.venv -maxdepth 2 -name '*.lock' -exec chmod 600 {} + # uv's locks: people who can open one can hold it

umask 077
install --directory --mode 700 $STATE $STATE/temporary $SETTINGS
cd $SETTINGS
getent group workshop-room >/dev/null || groupadd workshop-room
# PAM: people may log in only through the room, not by ssh, cron, at, su or a user's systemd.
alone="account requisite pam_succeed_if.so quiet user notingroup workshop-room"
grep -qxF "$alone" /etc/pam.d/common-account || sed --in-place "1i $alone" /etc/pam.d/common-account
(umask 022 && printf '%s\n' "auth requisite pam_succeed_if.so quiet user ingroup workshop-room" \
  "auth required pam_unix.so nodelay" "account required pam_unix.so" >/etc/pam.d/workshop-room)
word() { python3 -Ic "import secrets; print(secrets.token_urlsafe($1))"; }
for secret in proxy.token instructor.password; do [ -s $secret ] || word 32 >$secret; done
if [ -n "$password_file" ]; then
  IFS= read -r password <"$password_file" || true
  [ ${#password} -ge 8 ] || fail "the password in $password_file has only ${#password} characters" "use 8 or more characters"
  printf '%s\n' "$password" >room.password
fi
[ -z "$open" ] || [ -s room.password ] || word 9 >room.password
if [ -n "$certificate" ]; then
  cat "$certificate" >room.pem
  cat "$key" >room.key
elif [ ! -s room.pem ]; then
  openssl req -x509 -newkey rsa:2048 -noenc -days 365 -subj "/CN=$host" -addext "subjectAltName=DNS:$host,DNS:*.$host" \
    -keyout room.key -out room.pem 2>/dev/null || fail "openssl cannot create a certificate for $host" "use --certificate FILE and --key FILE"
fi
{ echo "listen $port ssl;" && { [ ! -e /proc/net/if_inet6 ] || echo "listen [::]:$port ssl;"; }; echo "set \$room $address;"; } >listen.conf
if [ -n "$subdomains" ]; then echo "default unknown; $host room; *.$host person;"; else echo "default any;"; fi >names.conf
python3 -Ic 'import json, sys; port, host, memory, processes, disk, reach, people, *flags = sys.argv[1:]; print(json.dumps({
  "port": int(port), "host": host, "memory": memory, "processes": int(processes), "disk": disk, "reach": reach,
  "people": people.split(), "open": bool(flags[0]), "subdomains": bool(flags[1])}))' \
  "$port" "$host" "$memory" "$processes" "$disk" "$reach" "$names" "$open" "$subdomains" >room.json
for name in $names instructor; do
  id "$name" >/dev/null 2>&1 || make_account "$name"
  [ "$(passwd --status "$name" | cut -d' ' -f2)" = P ] || /opt/workshop/server/room/room.sh password "$name" >/dev/null
done

start=/opt/workshop/server/room/room.sh
if [ -d /run/systemd/system ]; then
  printf '%s\n' "[Unit]" "Description=The workshop's room" "After=network-online.target" "Wants=network-online.target" \
    "[Service]" "Type=oneshot" "RemainAfterExit=yes" "ExecStart=$start start" "ExecStop=$start stop" \
    "[Install]" "WantedBy=multi-user.target" >/etc/systemd/system/workshop-room.service
  systemctl --quiet enable workshop-room
elif [ -d /etc/cron.d ]; then
  echo "@reboot root $start start" >/etc/cron.d/workshop-room
else
  echo "After each reboot, type: $start start" >&2
fi
$start restart
others=$(getent passwd | awk -F: -v first=$FIRST_UID -v last=$LAST_UID '$3 >= first && $3 <= last && $1 != "instructor" {print $1}' |
  grep -vxF "$names" || true)
for name in $others; do
  [ -n "$open" ] || /opt/workshop/server/room/person.sh leave "$name"
done
if [ -n "$people" ]; then
  echo "The room:       https://$address, names and passwords in $SETTINGS/passwords.txt"
  echo "The instructor: https://$address/services/board, the name instructor, the password in $SETTINGS/passwords.txt"
  [ -z "$others" ] || echo "No longer in the list: ${others//$'\n'/, }. They cannot log in; their files are kept in /home."
else
  echo "The room:       https://$address, any name, the password in $SETTINGS/room.password"
  echo "The instructor: https://$address/services/board, the name instructor, the password in $SETTINGS/instructor.password"
  [ -z "$others" ] || echo "Everyone with the room's password can also log in as ${others//$'\n'/, }."
fi
