-- The roles and databases of the compose stack: Temporal's own, and the application's apart from it.
-- Run by psql as the superuser at every start: what exists is kept, passwords are set to those of the environment.
\set ON_ERROR_STOP on

\getenv temporal_password TEMPORAL_DB_PASSWORD
\getenv owner_password REFERRALS_OWNER_PASSWORD
\getenv app_password REFERRALS_APP_PASSWORD

-- A statement that fails must not leave its password in the server's log.
SET log_min_error_statement = panic;

-- The passwords also stand in database addresses and in Temporal's configuration, where other characters mean something.
SELECT format(
    'DO $do$ BEGIN RAISE EXCEPTION %L; END $do$',
    name || ' must be at least 16 characters, of A-Z a-z 0-9 - . _ ~ only'
)
FROM (
    VALUES
        ('TEMPORAL_DB_PASSWORD', :'temporal_password'),
        ('REFERRALS_OWNER_PASSWORD', :'owner_password'),
        ('REFERRALS_APP_PASSWORD', :'app_password')
) AS given (name, password)
WHERE password !~ '^[A-Za-z0-9._~-]{16,}$'
\gexec

SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['temporal', 'referrals_owner', 'referrals_app']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

ALTER ROLE temporal LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'temporal_password';
ALTER ROLE referrals_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'owner_password';
ALTER ROLE referrals_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'app_password';

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (
    VALUES ('temporal', 'temporal'), ('temporal_visibility', 'temporal'), ('referrals', 'referrals_owner')
) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name)
\gexec

-- Each role reaches its own database and no other, the server's own included.
REVOKE ALL ON DATABASE postgres, template1, temporal, temporal_visibility, referrals FROM PUBLIC;
GRANT CONNECT ON DATABASE referrals TO referrals_app;
