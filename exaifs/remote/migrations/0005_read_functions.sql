-- What a mount asks: one jsonb value a call (PostgREST cuts rows at 1,000), parameters of text and integer
-- only (the embedded server passes jsonb wrongly), keyset pages in byte order of the keys (COLLATE "C").
--
-- A record R is an object and its row:
--   key, version, size (bytes), mime, etag, created_ns, updated_ns (text, nanoseconds since the epoch),
--   file_id (null: no row), sha256, write_id (null: not known), posix {}, xattrs {}, provider_file_ids {}
-- What the row says of the bytes counts only while it describes this very version; mode, uid and gid always.

CREATE OR REPLACE FUNCTION public.exaifs_records(p_bucket text, p_keys text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'key', o.name,
            'version', coalesce(o.version, ''),
            'size', CASE WHEN d.j ->> 'size' ~ '^[0-9]{1,18}$' THEN (d.j ->> 'size')::bigint ELSE 0 END,
            'mime', coalesce(CASE WHEN v.ok THEN m.mime_type END, d.j ->> 'mimetype', 'application/octet-stream'),
            'etag', coalesce(d.j ->> 'eTag', ''),
            'created_ns', coalesce((extract(epoch FROM o.created_at) * 1000000000)::bigint, 0)::text,
            'updated_ns', coalesce((extract(epoch FROM o.updated_at) * 1000000000)::bigint, 0)::text,
            'file_id', m.file_id,
            'sha256', CASE WHEN v.ok AND m.file_hash ~ '^[0-9a-f]{64}$' THEN m.file_hash END,
            'write_id', CASE WHEN v.ok THEN m.metadata ->> 'write_id' END,
            'posix', CASE
                WHEN jsonb_typeof(m.metadata -> 'posix') IS DISTINCT FROM 'object' THEN '{}'
                WHEN v.ok THEN m.metadata -> 'posix'
                ELSE (m.metadata -> 'posix') - 'mtime_ns' - 'kind'
            END,
            'xattrs', CASE WHEN v.ok AND jsonb_typeof(m.metadata -> 'xattrs') = 'object' THEN m.metadata -> 'xattrs' ELSE '{}' END,
            'provider_file_ids', CASE
                WHEN v.ok AND jsonb_typeof(m.provider_file_ids) = 'object' THEN m.provider_file_ids ELSE '{}'
            END
        ) ORDER BY k.place), '[]')
        FROM unnest(p_keys) WITH ORDINALITY AS k (key, place)
        -- LIMIT makes it one look into each index a key; a hash join would read whole tables.
        CROSS JOIN LATERAL (
            SELECT x.name, x.version, x.metadata, x.created_at, x.updated_at FROM storage.objects x
            WHERE x.bucket_id = p_bucket AND x.name = k.key LIMIT 1
        ) o
        LEFT JOIN LATERAL (
            SELECT x.file_id, x.mime_type, x.file_hash, x.metadata, x.provider_file_ids FROM public.file_metadata x
            WHERE x.bucket = p_bucket AND x.supabase_storage_path = k.key LIMIT 1
        ) m ON true
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN jsonb_typeof(o.metadata) = 'object' THEN o.metadata ELSE public.exaifs_json_object(o.metadata)
            END AS j
        ) d
        CROSS JOIN LATERAL (SELECT m.metadata ->> 'version' = coalesce(o.version, '') AS ok) v
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_records(text, text[]) IS
    'Internal: array of the records of those keys that exist, in the order given.';

-- The change feed -------------------------------------------------------------------------------------
-- Transactions commit in another order than they begin, so the log is read only below the oldest one that
-- still runs, by (txid, seq). A cursor is 'identity:txid:seq' of the last entry consumed.

CREATE OR REPLACE FUNCTION public.exaifs_log_identity() RETURNS text
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
AS $$
DECLARE
    v_identity text;
BEGIN
    SELECT s.log_id::text INTO v_identity FROM public.exaifs_log_state s;
    -- A backup restored elsewhere carries our uuid along, but not the cluster's identifier; one restored in
    -- place, or a failover that may have lost a transaction, begins a new timeline of the write-ahead log.
    BEGIN
        v_identity := v_identity || (SELECT c.system_identifier::text FROM pg_control_system() c);
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    BEGIN
        v_identity := v_identity || left(pg_walfile_name(pg_current_wal_lsn()), 8);
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN md5(v_identity);
END
$$;
COMMENT ON FUNCTION public.exaifs_log_identity() IS
    'Internal: names this change log on this server; another after a restored backup.';

CREATE OR REPLACE FUNCTION public.exaifs_cursor_now() RETURNS text
LANGUAGE sql STABLE SECURITY INVOKER SET search_path = ''
AS $$
    SELECT public.exaifs_log_identity() || ':' || (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)
        || ':9223372036854775807'
$$;
COMMENT ON FUNCTION public.exaifs_cursor_now() IS
    'Internal: the cursor after everything that is committed and that no running transaction can precede.';

CREATE OR REPLACE FUNCTION public.exaifs_changes(p_bucket text, p_cursor text, p_limit integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    v_identity text := public.exaifs_log_identity();
    v_parts text[] := string_to_array(coalesce(p_cursor, ''), ':');
    v_txid bigint;
    v_seq bigint;
    v_bucket public.exaifs_buckets%ROWTYPE;
    v_known boolean := false;
    v_keys text[];
    v_read integer;
    v_records jsonb;
BEGIN
    IF coalesce(p_cursor, '') ~ '^[0-9a-f]{32}:[0-9]{1,18}:([0-9]{1,18}|9223372036854775807)$' THEN
        v_txid := v_parts[2]::bigint;
        v_seq := v_parts[3]::bigint;
        SELECT * INTO v_bucket FROM public.exaifs_buckets b WHERE b.bucket_id = p_bucket;
        -- Another log; a future this server has not had; entries that are trimmed; a bucket nobody follows.
        v_known := v_parts[1] = v_identity AND v_txid < v_horizon AND v_bucket.bucket_id IS NOT NULL
            AND (v_txid, v_seq) >= (v_bucket.trimmed_txid, v_bucket.trimmed_seq);
    END IF;
    IF NOT v_known THEN
        RETURN jsonb_build_object(
            'changes', '[]'::jsonb, 'cursor', public.exaifs_cursor_now(), 'more', false,
            'continuous', coalesce(p_cursor, '') = ''
        );
    END IF;

    WITH page AS (
        SELECT l.txid, l.seq, l.key, row_number() OVER (ORDER BY l.txid, l.seq) AS place FROM (
            SELECT c.txid, c.seq, c.key FROM public.exaifs_change_log c
            WHERE c.bucket = p_bucket AND (c.txid, c.seq) > (v_txid, v_seq) AND c.txid < v_horizon
            ORDER BY c.txid, c.seq LIMIT v_limit + 1
        ) l
    ), newest AS (
        SELECT p.key, max(p.place) AS place FROM page p WHERE p.place <= v_limit GROUP BY p.key
    ), last AS (
        SELECT p.txid, p.seq FROM page p WHERE p.place <= v_limit ORDER BY p.place DESC LIMIT 1
    )
    SELECT (SELECT count(*) FROM page), (SELECT array_agg(n.key ORDER BY n.place) FROM newest n),
        coalesce((SELECT t.txid FROM last t), v_txid), coalesce((SELECT t.seq FROM last t), v_seq)
    INTO v_read, v_keys, v_txid, v_seq;

    v_records := public.exaifs_records(p_bucket, v_keys);
    RETURN jsonb_build_object(
        'changes', (
            SELECT coalesce(jsonb_agg(jsonb_build_object('key', k.key, 'record', r.value) ORDER BY k.place), '[]')
            FROM unnest(v_keys) WITH ORDINALITY AS k (key, place)
            LEFT JOIN jsonb_array_elements(v_records) AS r (value) ON r.value ->> 'key' = k.key
        ),
        'cursor', v_identity || ':' || v_txid || ':' || v_seq,
        'more', v_read > v_limit,
        'continuous', true
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_changes(text, text, integer) IS
    'What changed in a bucket after a cursor: {"changes": [{"key", "record": R or null}], "cursor", "more", "continuous"}; oldest first, each key once, in its state now. An empty cursor means from now on. Not continuous: list again and go on from the cursor returned.';

-- Proof of the key and capabilities ---------------------------------------------------------------------

CREATE OR REPLACE FUNCTION public.exaifs_hello(p_bucket text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    RETURN jsonb_build_object(
        'schema_version', (SELECT coalesce(max(g.number), 0) FROM public.exaifs_migrations g),
        'bucket', (
            SELECT jsonb_build_object(
                'id', b.id, 'public', coalesce(b.public, false), 'file_size_limit', b.file_size_limit,
                'allowed_mime_types', to_jsonb(b.allowed_mime_types)
            ) FROM storage.buckets b WHERE b.id = p_bucket
        ),
        'trigger_installed', EXISTS (
            SELECT FROM pg_catalog.pg_trigger t
            WHERE t.tgrelid = to_regclass('storage.objects') AND t.tgname = 'exaifs_on_object' AND t.tgenabled IN ('O', 'A')
        ),
        'bucket_registered', EXISTS (SELECT FROM public.exaifs_buckets b WHERE b.bucket_id = p_bucket),
        'trigger_errors', (SELECT count(*) FROM public.exaifs_trigger_errors),
        'cursor', public.exaifs_cursor_now()
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_hello(text) IS
    'Only service_role may call it, so an answer proves the key. {"schema_version", "bucket": {"id", "public", "file_size_limit", "allowed_mime_types"} or null, "trigger_installed", "bucket_registered", "trigger_errors", "cursor"}';

-- Listing -----------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION public.exaifs_stat(p_bucket text, p_keys text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    RETURN jsonb_build_object('records', public.exaifs_records(p_bucket, p_keys));
END
$$;
COMMENT ON FUNCTION public.exaifs_stat(text, text[]) IS
    '{"records": [R]} of the keys that exist, in the order given.';

-- One level below a prefix. Keys are walked in order; a folder costs one jump of the index however much is
-- below it, to prefix/folder0: '0' is the character after '/'. The planner is kept from sorting, because a
-- walk reads few of the rows it might.
CREATE OR REPLACE FUNCTION public.exaifs_list_directory(
    p_bucket text, p_prefix text, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_prefix text := coalesce(p_prefix, '');
    v_after text := coalesce(p_after, '');
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_from text := v_prefix;  -- the walk goes on at the first key not below this
    v_rest text;
    v_slash integer;
    v_name text;
    v_count integer := 0;
    v_keys text[] := '{}';
    v_folders text[] := '{}';
    v_markers jsonb;
    v_last text;              -- token of the last entry taken: its key, or prefix/folder/
    v_next text;
    v_jumped boolean := true;
BEGIN
    IF v_after COLLATE "C" > v_prefix THEN
        -- No key of this level has a slash after the prefix, so one at the end says that it was a folder.
        v_from := CASE
            WHEN right(v_after, 1) = '/' AND starts_with(v_after, v_prefix) THEN left(v_after, -1) || '0' ELSE v_after
        END;
    END IF;
    <<walk>>
    WHILE v_jumped LOOP
        v_jumped := false;
        FOR v_name IN
            SELECT o.name FROM storage.objects o
            WHERE o.bucket_id = p_bucket AND o.name COLLATE "C" >= v_from ORDER BY o.name COLLATE "C"
        LOOP
            EXIT walk WHEN NOT starts_with(v_name, v_prefix);
            CONTINUE WHEN v_name = v_after;
            IF v_count = v_limit THEN
                v_next := v_last;
                EXIT walk;
            END IF;
            v_count := v_count + 1;
            v_rest := substr(v_name, length(v_prefix) + 1);
            v_slash := strpos(v_rest, '/');
            IF v_slash = 0 THEN
                v_keys := array_append(v_keys, v_name);
                v_last := v_name;
            ELSE
                v_folders := array_append(v_folders, left(v_rest, v_slash - 1));
                v_last := v_prefix || left(v_rest, v_slash);
                v_from := v_prefix || left(v_rest, v_slash - 1) || '0';
                v_jumped := true;
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
    -- The object in a folder whose row keeps the folder's own attributes.
    v_markers := public.exaifs_records(p_bucket, ARRAY(
        SELECT v_prefix || f.name || '/.emptyFolderPlaceholder' FROM unnest(v_folders) AS f (name)
    ));
    RETURN jsonb_build_object(
        'records', public.exaifs_records(p_bucket, v_keys),
        'folders', (
            SELECT coalesce(jsonb_agg(jsonb_build_object('name', f.name, 'marker', r.value) ORDER BY f.place), '[]')
            FROM unnest(v_folders) WITH ORDINALITY AS f (name, place)
            LEFT JOIN jsonb_array_elements(v_markers) AS r (value)
                ON r.value ->> 'key' = v_prefix || f.name || '/.emptyFolderPlaceholder'
        ),
        'next', v_next
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_list_directory(text, text, text, integer) IS
    'A page of one level: {"records": [R], "folders": [{"name", "marker": R or null}], "next": give it as p_after, or null}. p_prefix is empty or ends in a slash; p_limit (1 to 10,000) counts both kinds.';

CREATE OR REPLACE FUNCTION public.exaifs_list_tree(
    p_bucket text, p_prefix text, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_prefix text := coalesce(p_prefix, '');
    v_after text := coalesce(p_after, '');
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_from text := CASE WHEN v_after COLLATE "C" > v_prefix THEN v_after ELSE v_prefix END;
    v_name text;
    v_keys text[] := '{}';
    v_next text;
BEGIN
    FOR v_name IN
        SELECT o.name FROM storage.objects o
        WHERE o.bucket_id = p_bucket AND o.name COLLATE "C" >= v_from ORDER BY o.name COLLATE "C"
    LOOP
        EXIT WHEN NOT starts_with(v_name, v_prefix);
        CONTINUE WHEN v_name = v_after;
        IF cardinality(v_keys) = v_limit THEN
            v_next := v_keys[v_limit];
            EXIT;
        END IF;
        v_keys := array_append(v_keys, v_name);
    END LOOP;
    RETURN jsonb_build_object('records', public.exaifs_records(p_bucket, v_keys), 'next', v_next);
END
$$;
COMMENT ON FUNCTION public.exaifs_list_tree(text, text, text, integer) IS
    'A page of all keys that start with p_prefix: {"records": [R], "next": give it as p_after, or null}. p_limit is 1 to 10,000.';

INSERT INTO public.exaifs_migrations (number, name) VALUES (5, 'read_functions') ON CONFLICT DO NOTHING;
