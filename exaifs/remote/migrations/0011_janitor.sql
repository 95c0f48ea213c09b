-- Deleting what is to go: the queue's consumer, and what `exaifs gc` asks.
--
-- Objects can be deleted through the Storage API only, by name, a moment after SQL has said which: in between
-- somebody may have written a new file there, or linked the old one. So an entry of the queue names the version
-- that is to go, and while somebody works on an entry (its lease), a trigger on storage.objects keeps every
-- other version from being deleted: who deletes such a file himself is to try again a moment later.

ALTER TABLE public.exaifs_delete_queue
    ADD COLUMN IF NOT EXISTS lease_until timestamptz,                -- somebody deletes it now; null or past: nobody
    ADD COLUMN IF NOT EXISTS spare_linked boolean NOT NULL DEFAULT true;  -- a file that a conversation has is not deleted

CREATE OR REPLACE FUNCTION public.exaifs_is_linked(p_bucket text, p_key text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    IF to_regclass('public.conversation_files') IS NULL THEN
        RETURN false;
    END IF;
    -- By its id and by its path: a look into an index each, as long as nothing else is joined.
    PERFORM FROM public.file_metadata m JOIN public.conversation_files l ON l.file_id = m.file_id
    WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key;
    IF NOT FOUND THEN
        PERFORM FROM public.files f JOIN public.conversation_files l ON l.file_id = f.id
        WHERE f.storage_path = p_key AND coalesce(to_jsonb(f) ->> 'bucket', p_bucket) = p_bucket;
    END IF;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.exaifs_is_linked(text, text) IS 'Internal: whether any conversation has the file at this key.';

CREATE OR REPLACE FUNCTION public.exaifs_is_condemned(p_bucket text, p_key text, p_version text) RETURNS boolean
LANGUAGE sql STABLE SECURITY INVOKER SET search_path = ''
AS $$
    SELECT q.object_version IS NOT DISTINCT FROM p_version
        AND NOT (q.spare_linked AND public.exaifs_is_linked(p_bucket, p_key))
    FROM public.exaifs_delete_queue q WHERE q.bucket = p_bucket AND q.key = p_key
$$;
COMMENT ON FUNCTION public.exaifs_is_condemned(text, text, text) IS
    'Internal: whether an object in this version is the one that its entry in the queue means; null: there is no entry.';

CREATE OR REPLACE FUNCTION public.exaifs_before_object_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM public.exaifs_delete_queue q
        WHERE q.bucket = OLD.bucket_id AND q.key = OLD.name AND q.lease_until > now()
            AND NOT public.exaifs_is_condemned(q.bucket, q.key, OLD.version)
    ) THEN
        RETURN NULL;
    END IF;
    RETURN OLD;
EXCEPTION WHEN OTHERS THEN
    PERFORM public.exaifs_note_error('guard DELETE', OLD.bucket_id, OLD.name, SQLSTATE, SQLERRM);
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION public.exaifs_before_object_delete() IS
    'Trigger on storage.objects: keeps a file that took the place of one that is being deleted. Never raises.';

DO $$
BEGIN
    CREATE OR REPLACE TRIGGER exaifs_before_object_delete
        BEFORE DELETE ON storage.objects FOR EACH ROW EXECUTE FUNCTION public.exaifs_before_object_delete();
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'exaifs: no trigger on storage.objects, files are deleted by name: %', SQLERRM;
END
$$;

-- As in 0003, but: directories of conversations are named as mounts name them, a link counts by id and by path,
-- and what was queued is worked on anew.
CREATE OR REPLACE FUNCTION public.exaifs_on_conversation_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
DECLARE
    v_id text := to_jsonb(OLD) ->> 'id';
    v_continuation text := nullif(to_jsonb(OLD) ->> 'continuation_id', '');
    v_component text;
BEGIN
    BEGIN
        -- Every component that shows as this name: ours, and a foreign one that is no escape of ours.
        FOR v_component IN
            SELECT DISTINCT c FROM unnest(ARRAY[public.exaifs_encode_name(coalesce(v_continuation, '')), v_continuation]) c
            WHERE c <> '' AND strpos(c, '/') = 0 AND public.exaifs_decode_name(c) = v_continuation
        LOOP
            INSERT INTO public.exaifs_delete_queue (bucket, key, object_version, reason)
            SELECT o.bucket_id, o.name, o.version, 'conversation ' || v_continuation
            FROM public.file_metadata m
            JOIN public.exaifs_buckets b ON b.bucket_id = m.bucket
            JOIN storage.objects o ON o.bucket_id = m.bucket AND o.name = m.supabase_storage_path
            WHERE m.supabase_storage_path COLLATE "C" >= 'uploads/' || v_component || '/'
                AND m.supabase_storage_path COLLATE "C" < 'uploads/' || v_component || '0'
            ON CONFLICT (bucket, key) DO UPDATE SET object_version = excluded.object_version,
                reason = excluded.reason, queued_at = excluded.queued_at, lease_until = NULL, spare_linked = true;
        END LOOP;
        INSERT INTO public.exaifs_delete_queue (bucket, key, object_version, reason)
        SELECT o.bucket_id, o.name, o.version, 'conversation ' || coalesce(v_continuation, v_id)
        FROM (
            SELECT coalesce(
                    m.bucket, f.j ->> 'bucket',
                    CASE f.j ->> 'file_type' WHEN 'generated' THEN 'generated-files' ELSE 'user-files' END
                ) AS bucket,
                coalesce(m.supabase_storage_path, f.j ->> 'storage_path') AS key
            FROM public.conversation_files l
            JOIN LATERAL (SELECT x.id, to_jsonb(x) AS j FROM public.files x WHERE x.id = l.file_id) f ON true
            LEFT JOIN public.file_metadata m ON m.file_id = f.id
            WHERE l.conversation_id::text = v_id
            UNION
            SELECT m.bucket, m.supabase_storage_path FROM public.file_metadata m
            WHERE m.metadata ->> 'continuation_id' = v_continuation
        ) c
        JOIN storage.objects o ON o.bucket_id = c.bucket AND o.name = c.key
        ON CONFLICT (bucket, key) DO UPDATE SET object_version = excluded.object_version,
            reason = excluded.reason, queued_at = excluded.queued_at, lease_until = NULL, spare_linked = true;
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error('queue conversation', NULL, coalesce(v_continuation, v_id), SQLSTATE, SQLERRM);
    END;
    BEGIN
        -- Its links go before the row does: what is linked still, another conversation has.
        DELETE FROM public.files f
        WHERE f.id IN (SELECT l.file_id FROM public.conversation_files l WHERE l.conversation_id::text = v_id)
            AND NOT EXISTS (
                SELECT FROM public.conversation_files l WHERE l.file_id = f.id AND l.conversation_id::text <> v_id
            );
        DELETE FROM public.conversation_files l WHERE l.conversation_id::text = v_id;
        DELETE FROM public.exaifs_delete_queue q
        WHERE q.reason = 'conversation ' || coalesce(v_continuation, v_id)
            AND public.exaifs_is_linked(q.bucket, q.key);
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error('files of conversation', NULL, coalesce(v_continuation, v_id), SQLSTATE, SQLERRM);
    END;
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION public.exaifs_on_conversation_delete() IS
    'Trigger: queues the objects of a deleted conversation for the janitor, but none that another one has. Never raises.';

-- The queue ---------------------------------------------------------------------------------------------

-- Entries whose object is gone, replaced by somebody since, or part of a conversation again: no longer ours.
CREATE OR REPLACE FUNCTION public.exaifs_settle_deletions(p_bucket text, p_keys text[]) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM public.exaifs_delete_queue q
    WHERE q.bucket = p_bucket AND q.key = ANY (p_keys) AND NOT EXISTS (
        SELECT FROM storage.objects o
        WHERE o.bucket_id = q.bucket AND o.name = q.key AND public.exaifs_is_condemned(q.bucket, q.key, o.version)
    );
    -- From what is there now, so that a repeated call says the same.
    RETURN (
        SELECT jsonb_build_object(
            'gone', coalesce(jsonb_agg(k.key ORDER BY k.key COLLATE "C") FILTER (WHERE NOT k.is_there), '[]'),
            'kept', coalesce(jsonb_agg(k.key ORDER BY k.key COLLATE "C") FILTER (WHERE k.is_there), '[]')
        )
        FROM (
            SELECT DISTINCT u.key, EXISTS (
                SELECT FROM storage.objects o WHERE o.bucket_id = p_bucket AND o.name = u.key
            ) AS is_there
            FROM unnest(p_keys) AS u (key)
            WHERE NOT EXISTS (SELECT FROM public.exaifs_delete_queue q WHERE q.bucket = p_bucket AND q.key = u.key)
        ) k
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_settle_deletions(text, text[]) IS
    'After the deletion of objects that were taken or condemned: {"gone": [key], "kept": [key: another file, or part of a conversation again]}. What is in neither could not be deleted, and is taken again when its lease is over.';

CREATE OR REPLACE FUNCTION public.exaifs_take_deletions(p_bucket text, p_limit integer, p_lease_s integer) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_free text[];
    v_keys text[];
BEGIN
    -- Whoever asks at the same time gets the next ones; who dies leaves them to others when the lease is over.
    SELECT array_agg(f.key) INTO v_free FROM (
        SELECT q.key FROM public.exaifs_delete_queue q
        WHERE q.bucket = p_bucket AND (q.lease_until IS NULL OR q.lease_until <= now())
        ORDER BY q.queued_at, q.key LIMIT least(greatest(coalesce(p_limit, 100), 1), 1000)
        FOR UPDATE SKIP LOCKED
    ) f;
    IF v_free IS NULL THEN
        RETURN jsonb_build_object('keys', '[]'::jsonb, 'more', false);
    END IF;
    PERFORM public.exaifs_settle_deletions(p_bucket, v_free);
    WITH taken AS (
        UPDATE public.exaifs_delete_queue q
        SET lease_until = now() + interval '1 second' * least(greatest(coalesce(p_lease_s, 60), 1), 3600)
        WHERE q.bucket = p_bucket AND q.key = ANY (v_free)
        RETURNING q.key
    )
    SELECT array_agg(t.key ORDER BY t.key COLLATE "C") INTO v_keys FROM taken t;
    RETURN jsonb_build_object('keys', coalesce(to_jsonb(v_keys), '[]'), 'more', true);
END
$$;
COMMENT ON FUNCTION public.exaifs_take_deletions(text, integer, integer) IS
    'Takes the oldest entries of the queue (1 to 1,000) for so many seconds: {"keys": [key], "more": false: nobody needs to ask again at once}. Delete them through the Storage API, then call exaifs_settle_deletions.';

-- What `exaifs gc` asks -----------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION public.exaifs_time(p_text text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    IF p_text ~* '^\d{4}-\d\d-\d\dt([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)$' THEN
        RETURN p_text::timestamptz;
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.exaifs_time(text) IS 'Internal: a time as RFC 3339 writes it, such as 2026-01-31T12:00:00Z; null: it is none.';

-- A finding is one of
--   expired    expires_at in the row's metadata is past, whoever has the file
--   orphan     no conversation has it, it claims one, and nobody wrote or read it for so long: it is in
--              uploads/{continuation_id}/ of one that does not exist; or a program stored it as generated or cache
--              (file_type), and nobody moved it to another directory. What has a time to expire has until then
--   malformed  expires_at is no time of RFC 3339: for people to see, never deleted
--   row        a row without an object, for so long
CREATE OR REPLACE FUNCTION public.exaifs_gc_findings(p_bucket text, p_keys text[], p_older_s bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_before timestamptz := now() - interval '1 second' * greatest(coalesce(p_older_s, 0), 0);
    v_conversations boolean := to_regclass('public.conversations') IS NOT NULL
        AND to_regclass('public.conversation_files') IS NOT NULL;
    v_file record;
    v_kind text;
    v_found jsonb := '[]';
BEGIN
    FOR v_file IN
        SELECT k.key, o.name IS NULL AS is_gone, coalesce(o.version, '') AS version, m.file_size, d.j ->> 'size' AS size,
            greatest(o.created_at, o.updated_at, CASE WHEN m.access_count > 0 THEN m.last_accessed END) AS used_at,
            greatest(m.created_at, m.updated_at, m.upload_date) AS row_at,
            nullif(x.metadata -> 'expires_at', 'null') AS expires, x.metadata ->> 'expires_at' AS expires_text,
            x.metadata ->> 'file_type' IN ('generated', 'cache') AND NOT x.metadata ? 'moved_from' AS is_made,
            public.exaifs_continuation_of(k.key) AS continuation,
            k.key LIKE '%.emptyFolderPlaceholder' AS is_marker
        FROM unnest(p_keys) WITH ORDINALITY AS k (key, place)
        JOIN public.file_metadata m ON m.bucket = p_bucket AND m.supabase_storage_path = k.key
        LEFT JOIN LATERAL (
            SELECT s.name, s.version, s.metadata, s.created_at, s.updated_at FROM storage.objects s
            WHERE s.bucket_id = p_bucket AND s.name = k.key LIMIT 1
        ) o ON true
        CROSS JOIN LATERAL (SELECT public.exaifs_json_object(o.metadata) AS j) d
        CROSS JOIN LATERAL (SELECT public.exaifs_json_object(m.metadata) AS metadata) x
        ORDER BY k.place
    LOOP
        v_kind := CASE
            WHEN v_file.is_gone THEN CASE WHEN v_file.row_at <= v_before THEN 'row' END
            WHEN v_file.is_marker THEN NULL
            WHEN v_file.expires IS NOT NULL THEN CASE
                WHEN jsonb_typeof(v_file.expires) <> 'string' OR public.exaifs_time(v_file.expires_text) IS NULL THEN 'malformed'
                WHEN public.exaifs_time(v_file.expires_text) <= now() THEN 'expired'
            END
            WHEN v_conversations AND v_file.used_at <= v_before AND (v_file.continuation IS NOT NULL OR v_file.is_made)
                THEN 'orphan'
        END;
        IF v_kind = 'orphan' THEN
            PERFORM FROM public.conversations c WHERE c.continuation_id = v_file.continuation;
            CONTINUE WHEN FOUND OR public.exaifs_is_linked(p_bucket, v_file.key);
        END IF;
        IF v_kind IS NOT NULL THEN
            v_found := v_found || jsonb_build_object(
                'kind', v_kind, 'key', v_file.key, 'version', v_file.version,
                'size', CASE
                    WHEN v_file.size ~ '^[0-9]{1,18}$' THEN v_file.size::bigint WHEN v_file.is_gone THEN 0 ELSE v_file.file_size
                END,
                'note', CASE
                    WHEN v_kind IN ('expired', 'malformed') THEN left(v_file.expires_text, 100)
                    ELSE to_char(coalesce(v_file.used_at, v_file.row_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                END
            );
        END IF;
    END LOOP;
    RETURN v_found;
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_findings(text, text[], bigint) IS
    'Internal: what of these keys can go: [{"kind", "key", "version", "size" (bytes), "note": expires_at, else when it was last used}].';

CREATE OR REPLACE FUNCTION public.exaifs_gc_scan(
    p_bucket text, p_older_s bigint, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_keys text[];
BEGIN
    v_keys := ARRAY(
        SELECT m.supabase_storage_path FROM public.file_metadata m
        WHERE m.bucket = p_bucket AND m.supabase_storage_path COLLATE "C" > coalesce(p_after, '')
        ORDER BY m.supabase_storage_path COLLATE "C" LIMIT v_limit
    );
    RETURN jsonb_build_object(
        'findings', public.exaifs_gc_findings(p_bucket, v_keys, p_older_s),
        'scanned', cardinality(v_keys),
        'next', CASE WHEN cardinality(v_keys) = v_limit THEN v_keys[v_limit] END
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_scan(text, bigint, text, integer) IS
    'Looks at a page of the rows of a bucket for what nobody wrote or read for so many seconds and can go: {"findings", "scanned": rows, "next": give it as p_after, or null}.';

-- Rows in files without an object: neither at their path nor, by their id, elsewhere. One that does not say
-- which bucket it means may mean any; one that does not say how old it is stays.
CREATE OR REPLACE FUNCTION public.exaifs_gc_entry_findings(p_bucket text, p_ids text[], p_older_s bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_before timestamptz := now() - interval '1 second' * greatest(coalesce(p_older_s, 0), 0);
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'kind', 'entry', 'key', f.storage_path, 'version', f.id, 'size', 0,
            'note', to_char(d.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        ) ORDER BY k.place), '[]')
        FROM unnest(p_ids) WITH ORDINALITY AS k (id, place)
        JOIN public.files f ON f.id = k.id::uuid
        CROSS JOIN LATERAL (
            SELECT to_jsonb(f) ->> 'bucket' AS bucket, (to_jsonb(f) ->> 'created_at')::timestamptz AS created_at
        ) d
        WHERE f.storage_path IS NOT NULL AND d.created_at <= v_before AND coalesce(d.bucket, p_bucket) = p_bucket
            AND NOT EXISTS (
                SELECT FROM storage.buckets b JOIN storage.objects o ON o.bucket_id = b.id AND o.name = f.storage_path
                WHERE b.id = coalesce(d.bucket, b.id)
            )
            AND NOT EXISTS (
                SELECT FROM public.file_metadata m
                JOIN storage.objects o ON o.bucket_id = m.bucket AND o.name = m.supabase_storage_path
                WHERE m.file_id = f.id
            )
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_entry_findings(text, text[], bigint) IS
    'Internal: as exaifs_gc_findings, for rows in files: kind "entry"; their version is the row''s id.';

CREATE OR REPLACE FUNCTION public.exaifs_gc_entries(
    p_bucket text, p_older_s bigint, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_ids text[] := '{}';
BEGIN
    IF to_regclass('public.files') IS NOT NULL THEN
        v_ids := ARRAY(
            SELECT f.id::text FROM public.files f
            WHERE f.id > coalesce(nullif(p_after, ''), '00000000-0000-0000-0000-000000000000')::uuid
            ORDER BY f.id LIMIT v_limit
        );
    END IF;
    RETURN jsonb_build_object(
        'findings', CASE
            WHEN cardinality(v_ids) > 0 THEN public.exaifs_gc_entry_findings(p_bucket, v_ids, p_older_s) ELSE '[]'
        END,
        'scanned', cardinality(v_ids),
        'next', CASE WHEN cardinality(v_ids) = v_limit THEN v_ids[v_limit] END
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_entries(text, bigint, text, integer) IS
    'As exaifs_gc_scan, for rows in files.';

CREATE OR REPLACE FUNCTION public.exaifs_gc_queue(p_bucket text, p_after text, p_limit integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_page jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object(
        'kind', 'queued', 'key', e.key, 'version', coalesce(e.object_version, ''), 'note', e.reason,
        'size', CASE WHEN e.size ~ '^[0-9]{1,18}$' THEN e.size::bigint ELSE 0 END, 'condemned', e.condemned
    ) ORDER BY e.key COLLATE "C") INTO v_page FROM (
        SELECT q.key, q.object_version, q.reason, public.exaifs_json_object(o.metadata) ->> 'size' AS size,
            o.name IS NOT NULL AND public.exaifs_is_condemned(q.bucket, q.key, o.version) AS condemned
        FROM public.exaifs_delete_queue q
        LEFT JOIN storage.objects o ON o.bucket_id = q.bucket AND o.name = q.key
        WHERE q.bucket = p_bucket AND q.key COLLATE "C" > coalesce(p_after, '')
        ORDER BY q.key COLLATE "C" LIMIT v_limit
    ) e;
    v_page := coalesce(v_page, '[]');
    RETURN jsonb_build_object(
        'findings', (
            SELECT coalesce(jsonb_agg(p.entry - 'condemned' ORDER BY p.place), '[]')
            FROM jsonb_array_elements(v_page) WITH ORDINALITY AS p (entry, place) WHERE (p.entry ->> 'condemned')::boolean
        ),
        'scanned', jsonb_array_length(v_page),
        'next', CASE WHEN jsonb_array_length(v_page) = v_limit THEN v_page -> -1 ->> 'key' END
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_queue(text, text, integer) IS
    'As exaifs_gc_scan, for what waits in the queue to be deleted: findings of kind "queued".';

CREATE OR REPLACE FUNCTION public.exaifs_gc_condemn(
    p_bucket text, p_older_s bigint, p_keys text[], p_versions text[], p_lease_s integer
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_keys text[];
BEGIN
    WITH still AS (
        SELECT f.value ->> 'key' AS key, f.value ->> 'version' AS version, f.value ->> 'kind' AS kind
        FROM jsonb_array_elements(public.exaifs_gc_findings(p_bucket, p_keys, p_older_s)) f
        JOIN unnest(p_keys, p_versions) AS k (key, version)
            ON k.key = f.value ->> 'key' AND k.version = f.value ->> 'version'
        WHERE f.value ->> 'kind' IN ('expired', 'orphan')
    ), condemned AS (
        INSERT INTO public.exaifs_delete_queue AS q (bucket, key, object_version, reason, lease_until, spare_linked)
        SELECT o.bucket_id, o.name, o.version, 'gc: ' || s.kind,
            now() + interval '1 second' * least(greatest(coalesce(p_lease_s, 60), 1), 3600), s.kind <> 'expired'
        FROM still s JOIN storage.objects o
            ON o.bucket_id = p_bucket AND o.name = s.key AND coalesce(o.version, '') = s.version
        ORDER BY o.name COLLATE "C"
        ON CONFLICT (bucket, key) DO UPDATE SET object_version = excluded.object_version, reason = excluded.reason,
            queued_at = now(), lease_until = excluded.lease_until, spare_linked = excluded.spare_linked
        WHERE q.lease_until IS NULL OR q.lease_until <= now()
        RETURNING q.key
    )
    SELECT array_agg(c.key ORDER BY c.key COLLATE "C") INTO v_keys FROM condemned c;
    RETURN jsonb_build_object('keys', coalesce(to_jsonb(v_keys), '[]'));
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_condemn(text, bigint, text[], text[], integer) IS
    'Takes those of the objects that can still go, in these versions, as exaifs_take_deletions does: {"keys": [key]}.';

CREATE OR REPLACE FUNCTION public.exaifs_gc_drop_rows(
    p_bucket text, p_older_s bigint, p_keys text[], p_entries text[]
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_before timestamptz := now() - interval '1 second' * greatest(coalesce(p_older_s, 0), 0);
    v_row text;
    v_keys text[] := '{}';
    v_ids text[] := '{}';
BEGIN
    -- One by one: a row that something else refers to stays, and does not keep the others.
    FOR v_row IN
        SELECT f.value ->> 'key' FROM jsonb_array_elements(public.exaifs_gc_findings(p_bucket, p_keys, p_older_s)) f
        WHERE f.value ->> 'kind' = 'row'
    LOOP
        BEGIN
            -- The age once more: whoever uploads the object at this moment has written the row.
            DELETE FROM public.file_metadata m
            WHERE m.bucket = p_bucket AND m.supabase_storage_path = v_row
                AND greatest(m.created_at, m.updated_at, m.upload_date) <= v_before;
            IF FOUND THEN
                v_keys := array_append(v_keys, v_row);
            END IF;
        EXCEPTION WHEN foreign_key_violation THEN NULL;
        END;
    END LOOP;
    IF cardinality(p_entries) > 0 THEN
        FOR v_row IN
            SELECT f.value ->> 'version'
            FROM jsonb_array_elements(public.exaifs_gc_entry_findings(p_bucket, p_entries, p_older_s)) f
        LOOP
            BEGIN
                DELETE FROM public.files f WHERE f.id = v_row::uuid;
                v_ids := array_append(v_ids, v_row);
            EXCEPTION WHEN foreign_key_violation THEN NULL;
            END;
        END LOOP;
    END IF;
    RETURN jsonb_build_object('keys', to_jsonb(v_keys), 'entries', to_jsonb(v_ids));
END
$$;
COMMENT ON FUNCTION public.exaifs_gc_drop_rows(text, bigint, text[], text[]) IS
    'Deletes those of the rows of these keys, and of the rows in files of these ids, that still have no object: {"keys": [key], "entries": [id]}.';

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (11, 'janitor') ON CONFLICT DO NOTHING;
