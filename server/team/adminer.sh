#!/bin/bash
# Serves Adminer. rotatelogs keeps two log files of 5 MB and also prints each line to the terminal (-e).
exec php -S 0.0.0.0:8080 /usr/share/adminer/adminer.php 2> >(exec rotatelogs -e -n 2 /var/log/team/adminer.log 5M >&2)
