-- Who may do what; then the trigger is set and the two buckets are followed.

-- Nothing is for anon and authenticated. service_role gets explicit grants: new projects give it none by
-- default. What is ours is found by name, so that later migrations end with this, too.
CREATE OR REPLACE FUNCTION public.exaifs_grant() RETURNS void
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    v_name text;
BEGIN
    FOR v_name IN
        SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND starts_with(p.proname, 'exaifs_')
    LOOP
        EXECUTE 'REVOKE ALL ON FUNCTION ' || v_name || ' FROM PUBLIC, anon, authenticated';
        EXECUTE 'GRANT EXECUTE ON FUNCTION ' || v_name || ' TO service_role';
    END LOOP;

    FOR v_name IN
        SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND starts_with(c.relname, 'exaifs_')
    LOOP
        EXECUTE 'ALTER TABLE ' || v_name || ' ENABLE ROW LEVEL SECURITY';
        EXECUTE 'REVOKE ALL ON TABLE ' || v_name || ' FROM PUBLIC, anon, authenticated';
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE ' || v_name || ' TO service_role';
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = v_name::regclass AND p.polname = 'exaifs_service_role'
        ) THEN
            EXECUTE 'CREATE POLICY exaifs_service_role ON ' || v_name
                || ' FOR ALL TO service_role USING (true) WITH CHECK (true)';
        END IF;
    END LOOP;

    -- Identity columns need no grant for inserts; the sequences are granted for tools that dump and restore.
    FOR v_name IN
        SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND starts_with(c.relname, 'exaifs_')
    LOOP
        EXECUTE 'REVOKE ALL ON SEQUENCE ' || v_name || ' FROM PUBLIC, anon, authenticated';
        EXECUTE 'GRANT USAGE, SELECT ON SEQUENCE ' || v_name || ' TO service_role';
    END LOOP;
END
$$;
COMMENT ON FUNCTION public.exaifs_grant() IS
    'For migrations: gives every function, table and sequence whose name begins with exaifs_ to service_role alone. Their owner may call it.';

SELECT public.exaifs_grant();

DO $$
DECLARE
    v_name text;
BEGIN
    -- What the project may have made itself keeps its own grants and policies besides.
    FOREACH v_name IN ARRAY ARRAY[
        'schema_version', 'conversations', 'messages', 'files', 'conversation_files', 'file_metadata'
    ] LOOP
        IF to_regclass('public.' || v_name) IS NOT NULL THEN
            EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE public.' || v_name || ' TO service_role';
        END IF;
    END LOOP;
END
$$;

-- CREATE OR REPLACE only: on a hosted project the TRIGGER privilege allows that, and nothing else here.
-- Without it the mounts still work: they complete the rows themselves and list again instead of following.
-- Where it was gone for a while, the log lacks what happened then: cursors from before have missed that.
DO $$
DECLARE
    v_followed boolean;
BEGIN
    IF to_regclass('storage.objects') IS NULL THEN
        RAISE EXCEPTION 'exaifs: this database has no storage.objects; is Storage enabled?'
            USING HINT = 'Start Supabase Storage on this database once, then apply the migrations.';
    END IF;
    v_followed := EXISTS (
        SELECT FROM pg_catalog.pg_trigger t
        WHERE t.tgrelid = 'storage.objects'::regclass AND t.tgname = 'exaifs_on_object' AND t.tgenabled IN ('O', 'A')
    );
    CREATE OR REPLACE TRIGGER exaifs_on_object
        AFTER INSERT OR UPDATE OR DELETE ON storage.objects
        FOR EACH ROW EXECUTE FUNCTION public.exaifs_on_object();
    IF NOT v_followed THEN
        UPDATE public.exaifs_buckets b SET trimmed_txid = n.txid, trimmed_seq = 0
        FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS txid) n
        WHERE b.trimmed_txid < n.txid;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'exaifs: no trigger on storage.objects, changes of other clients will be seen late: %', SQLERRM;
END
$$;

-- The embedded server has no index in byte order; the real one has, and is not ours to index.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_indexes i
        WHERE i.schemaname = 'storage' AND i.tablename = 'objects' AND strpos(i.indexdef, '(bucket_id, name COLLATE "C")') > 0
    ) AND EXISTS (
        SELECT FROM pg_catalog.pg_class c
        WHERE c.oid = to_regclass('storage.objects') AND c.relowner = current_user::regrole
    ) THEN
        CREATE INDEX exaifs_objects_name_c_idx ON storage.objects (bucket_id, name COLLATE "C");
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'exaifs: listing large buckets will be slow: %', SQLERRM;
END
$$;

-- Rows from before the bucket column whose object is in the other bucket.
UPDATE public.file_metadata m SET bucket = 'generated-files'
WHERE m.bucket = 'user-files' AND NOT m.metadata ? 'version'
    AND NOT EXISTS (
        SELECT FROM storage.objects o WHERE o.bucket_id = 'user-files' AND o.name = m.supabase_storage_path
    )
    AND EXISTS (
        SELECT FROM storage.objects o WHERE o.bucket_id = 'generated-files' AND o.name = m.supabase_storage_path
    )
    AND NOT EXISTS (
        SELECT FROM public.file_metadata x
        WHERE x.bucket = 'generated-files' AND x.supabase_storage_path = m.supabase_storage_path
    );

DO $$
BEGIN
    PERFORM public.exaifs_register_bucket('user-files');
    PERFORM public.exaifs_register_bucket('generated-files');
END
$$;

INSERT INTO public.exaifs_migrations (number, name) VALUES (7, 'grants_and_start') ON CONFLICT DO NOTHING;
