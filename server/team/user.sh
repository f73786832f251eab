#!/bin/sh
# Manages the users of the HTTPS log-in: `./user.sh add NAME` (again: a new password), `./user.sh remove NAME`.
set -eu
cd "$(dirname "$0")"
umask 077
users=secrets/proxy/users action=${1-} name=${2-}
case $name in "" | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) action= ;; esac
[ -e $users ] || { echo "There is no $PWD/$users. Next: ./secrets.sh" >&2; exit 1; }
case $action in
  add)
    mkdir -p secrets/users
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"secrets/users/$name"
    # bcrypt with a low cost, since it is computed at each request; 192 random bits cannot be guessed.
    line=$("$(command -v podman || command -v docker)" run --rm -i --network none --entrypoint htpasswd \
      localhost/team/proxy -niB "$name" <"secrets/users/$name") || { rm "secrets/users/$name"; exit 1; }
    ;;
  remove)
    cut -d: -f1 $users | grep -qxF "$name" || { echo "There is no user '$name' in $users." >&2; exit 1; }
    rm -f "secrets/users/$name"
    line=
    ;;
  *)
    echo "Invalid arguments: '$*'. Type ./user.sh add NAME or ./user.sh remove NAME; NAME consists of letters, digits, . _ and -" >&2
    exit 2
    ;;
esac
{ awk -F: -v name="$name" '$1 != name' $users; printf '%s' "${line:+$line
}"; } >$users.new
chmod 644 $users.new
mv $users.new $users
[ -z "$line" ] || echo "$name can log in. Hand over the password in $PWD/secrets/users/$name, then delete that file."
