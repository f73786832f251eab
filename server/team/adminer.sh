#!/bin/bash
# Serves Adminer. rotatelogs shows each line of the server on the terminal (-e), too, and keeps two files of 5 MB.
exec php -S 0.0.0.0:8080 /usr/share/adminer/adminer.php 2> >(exec rotatelogs -e -n 2 /var/log/team/adminer.log 5M >&2)
