-- Group roles. They are of the whole server, so they can be there already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'labref_reader') THEN
        CREATE ROLE labref_reader NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'labref_lab') THEN
        CREATE ROLE labref_lab NOLOGIN;
    END IF;
END
$$;

-- A lab, and how far it has published: number and tag of the last row of its outbox. What it wrote before its present
-- generation is from before the last time that it published everything.
CREATE TABLE lab (
    id           smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    role         name NOT NULL UNIQUE,
    added_at     timestamptz NOT NULL DEFAULT now(),
    sent         bigint,
    tag          text CHECK (length(tag) <= 100),
    generation   bigint NOT NULL DEFAULT 0,
    published_at timestamptz
);

CREATE TABLE bundle (
    number      smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest      text NOT NULL UNIQUE CHECK (digest ~ '^[0-9a-f]{64}$'),
    name        text NOT NULL CHECK (length(name) <= 200),
    version     text NOT NULL CHECK (length(version) <= 200),
    latent_size integer NOT NULL CHECK (latent_size BETWEEN 1 AND 2000),
    added_at    timestamptz NOT NULL DEFAULT now()
);

-- A cell of a lab, in the space of its active bundle. A partition for each bundle: latents of two bundles are never
-- compared. What a scan reads comes first, and latents stay in their row.
CREATE TABLE cell (
    bundle        smallint NOT NULL REFERENCES bundle,
    lab           smallint NOT NULL REFERENCES lab,
    withheld      boolean NOT NULL,
    optics        text CHECK (length(optics) <= 200),
    latent        vector NOT NULL,
    cell_id       text NOT NULL CHECK (cell_id ~ '^[0-9a-f]{16}$'),
    generation    bigint NOT NULL,
    digest        bytea NOT NULL CHECK (length(digest) = 32),
    label         text NOT NULL CHECK (length(label) <= 1000),
    label_source  text NOT NULL CHECK (label_source IN ('reviewed', 'analyser', 'predicted')),
    analyser      text CHECK (length(analyser) <= 200),
    place         text NOT NULL CHECK (place ~ '^[0-9a-f]{16}$'),
    across        bigint,
    down          bigint,
    captured_at   timestamptz,
    stored_at     timestamptz NOT NULL,
    PRIMARY KEY (lab, cell_id, bundle)
) PARTITION BY LIST (bundle);
ALTER TABLE cell ALTER COLUMN latent SET STORAGE PLAIN;
COMMENT ON COLUMN cell.place IS 'one cell of those of the lab that are or may be captures of one physical cell';
COMMENT ON COLUMN cell.across IS 'with down: difference hashes, 64 bit, as signed numbers';

CREATE TABLE thumbnail (
    lab     smallint NOT NULL REFERENCES lab,
    cell_id text NOT NULL CHECK (cell_id ~ '^[0-9a-f]{16}$'),
    jpeg    bytea NOT NULL CHECK (length(jpeg) <= 100000),
    PRIMARY KEY (lab, cell_id)
);
ALTER TABLE thumbnail ALTER COLUMN jpeg SET STORAGE EXTERNAL;

-- Only where a lab's [shared] send_names says so.
CREATE TABLE named (
    lab     smallint NOT NULL REFERENCES lab,
    cell_id text NOT NULL CHECK (cell_id ~ '^[0-9a-f]{16}$'),
    slide   text CHECK (length(slide) <= 4000),
    path    text NOT NULL CHECK (length(path) <= 40000),
    PRIMARY KEY (lab, cell_id)
);

-- The lab whose role asks; NULL for everybody else.
CREATE FUNCTION my_lab() RETURNS smallint LANGUAGE sql STABLE PARALLEL SAFE
    AS 'SELECT id FROM labref.lab WHERE role = current_user';

-- Making a partition takes the owner's rights.
CREATE FUNCTION add_bundle(the_digest text, the_name text, the_version text, size integer) RETURNS smallint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = labref, pg_catalog, pg_temp AS $$
DECLARE
    found smallint;
BEGIN
    SELECT number INTO found FROM bundle WHERE digest = the_digest AND latent_size = size;
    IF found IS NOT NULL THEN
        RETURN found;
    END IF;
    IF (SELECT count(*) FROM bundle) >= 1000 THEN
        RAISE EXCEPTION 'there are 1000 bundles already; let the owner drop some';
    END IF;
    INSERT INTO bundle (digest, name, version, latent_size) VALUES (the_digest, the_name, the_version, size)
        RETURNING number INTO found;
    EXECUTE format(
        'CREATE TABLE cell_%s PARTITION OF cell (CONSTRAINT latent_size CHECK (%s.vector_dims(latent) = %s)) FOR VALUES IN (%s)',
        found, '{vector}', size, found);
    RETURN found;
END
$$;

ALTER TABLE lab ENABLE ROW LEVEL SECURITY;
ALTER TABLE bundle ENABLE ROW LEVEL SECURITY;
ALTER TABLE cell ENABLE ROW LEVEL SECURITY;
ALTER TABLE thumbnail ENABLE ROW LEVEL SECURITY;
ALTER TABLE named ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON lab FOR SELECT TO labref_reader USING (true);
CREATE POLICY read ON bundle FOR SELECT TO labref_reader USING (true);
CREATE POLICY read ON cell FOR SELECT TO labref_reader USING (true);
CREATE POLICY read ON thumbnail FOR SELECT TO labref_reader USING (true);
CREATE POLICY read ON named FOR SELECT TO labref_reader USING (true);
CREATE POLICY publish ON lab FOR UPDATE TO labref_lab USING (role = current_user) WITH CHECK (role = current_user);
CREATE POLICY publish ON cell TO labref_lab USING (lab = (SELECT my_lab())) WITH CHECK (lab = (SELECT my_lab()));
CREATE POLICY publish ON thumbnail TO labref_lab USING (lab = (SELECT my_lab())) WITH CHECK (lab = (SELECT my_lab()));
CREATE POLICY publish ON named TO labref_lab USING (lab = (SELECT my_lab())) WITH CHECK (lab = (SELECT my_lab()));

REVOKE ALL ON SCHEMA labref FROM PUBLIC;
REVOKE ALL ON FUNCTION my_lab(), add_bundle(text, text, text, integer) FROM PUBLIC;
GRANT USAGE ON SCHEMA labref TO labref_reader, labref_lab;
GRANT SELECT ON migration, lab, bundle, cell, thumbnail, named TO labref_reader;
GRANT SELECT ON migration, lab, bundle, cell, thumbnail, named TO labref_lab;
GRANT UPDATE (sent, tag, generation, published_at) ON lab TO labref_lab;
GRANT INSERT, UPDATE, DELETE ON cell, thumbnail, named TO labref_lab;
GRANT EXECUTE ON FUNCTION my_lab() TO labref_reader, labref_lab;
GRANT EXECUTE ON FUNCTION add_bundle(text, text, text, integer) TO labref_lab;
