#!/bin/bash
# Runs once, when the volume is empty: one database and one owner for each service, that nobody else can connect to.
set -e

database() {
    psql --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres \
        --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

database registration "$REGISTRATION_DB_PASSWORD"
database login "$LOGIN_DB_PASSWORD"
database audit "$AUDIT_DB_PASSWORD"
