-- What `exaifs fsck` asks and mends: objects against their rows, under one snapshot a page, so that a writer in
-- between is never taken for damage. Whatever is mended is looked at again first, with its locks held.
--
-- A finding is {"kind", "key", "note"}; of one key there may be several:
--   object_without_row   no row says anything of the object
--   row_without_object   a row of an object that is gone; one without a version may have been made just before an
--                        upload by the project's own code, and counts after an hour
--   row_outdated         the row is of another version than the object: somebody wrote past the trigger
--   row_disagrees        the same version, but another size or ETag
--   row_duplicate        several rows for one path: the unique index is missing
--   hash_malformed       the hash is none
--   hash_missing         nobody said what the bytes hash to: an object of another client; no damage
--   ids_of_other_content a provider's record that was made from bytes of another hash
--   odd_key              perhaps a key that no path of a mount can name; the caller knows exactly

CREATE OR REPLACE FUNCTION public.exaifs_fsck_findings(p_bucket text, p_keys text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN (
        WITH files AS (
            SELECT k.key, k.place, o.name IS NOT NULL AS is_there, coalesce(o.version, '') AS version,
                m.file_id, m.file_size, m.file_hash, m.rows, m.at,
                d.j ->> 'size' AS size, coalesce(d.j ->> 'eTag', '') AS etag, x.metadata, x.ids
            FROM unnest(p_keys) WITH ORDINALITY AS k (key, place)
            LEFT JOIN LATERAL (
                SELECT s.name, s.version, s.metadata FROM storage.objects s
                WHERE s.bucket_id = p_bucket AND s.name = k.key LIMIT 1
            ) o ON true
            -- Of several rows the one that describes the object, else the newest, as in 0002.
            LEFT JOIN LATERAL (
                SELECT r.*, greatest(r.created_at, r.updated_at, r.upload_date) AS at, count(*) OVER () AS rows
                FROM public.file_metadata r
                WHERE r.bucket = p_bucket AND r.supabase_storage_path = k.key
                ORDER BY (public.exaifs_json_object(r.metadata) ->> 'version' IS NOT DISTINCT FROM coalesce(o.version, '')) DESC,
                    r.updated_at DESC NULLS LAST, r.upload_date DESC NULLS LAST, r.created_at DESC NULLS LAST, r.file_id DESC
                LIMIT 1
            ) m ON true
            CROSS JOIN LATERAL (SELECT public.exaifs_json_object(o.metadata) AS j) d
            CROSS JOIN LATERAL (
                SELECT public.exaifs_json_object(m.metadata) AS metadata, public.exaifs_json_object(m.provider_file_ids) AS ids
            ) x
        )
        SELECT coalesce(jsonb_agg(jsonb_build_object('kind', f.kind, 'key', f.key, 'note', f.note) ORDER BY f.place, f.rank), '[]')
        FROM (
            SELECT c.key, c.place, 1 AS rank, '' AS note, CASE
                WHEN NOT c.is_there THEN CASE
                    WHEN c.file_id IS NOT NULL AND (c.metadata ? 'version' OR c.at IS NULL OR c.at < now() - interval '1 hour')
                    THEN 'row_without_object'
                END
                WHEN c.file_id IS NULL THEN 'object_without_row'
                WHEN c.metadata ->> 'version' IS DISTINCT FROM c.version THEN 'row_outdated'
                WHEN c.size ~ '^[0-9]{1,18}$' AND c.file_size IS DISTINCT FROM c.size::bigint THEN 'row_disagrees'
                WHEN coalesce(c.metadata ->> 'etag', '') <> c.etag THEN 'row_disagrees'
            END AS kind FROM files c
            UNION ALL
            SELECT c.key, c.place, 2, c.rows::text, CASE WHEN c.rows > 1 THEN 'row_duplicate' END FROM files c
            UNION ALL
            SELECT c.key, c.place, 3, '', CASE
                WHEN c.file_hash !~ '^[0-9a-f]{64}$' THEN 'hash_malformed'
                WHEN c.file_hash IS NULL AND c.is_there AND c.metadata ->> 'version' = c.version THEN 'hash_missing'
            END FROM files c WHERE c.file_id IS NOT NULL
            UNION ALL
            SELECT c.key, c.place, 4, e.key || ' ' || coalesce(public.exaifs_provider_id(e.value), ''), 'ids_of_other_content'
            FROM files c CROSS JOIN LATERAL jsonb_each(c.ids) AS e (key, value)
            WHERE jsonb_typeof(e.value) = 'object' AND e.value ->> 'sha256' <> c.file_hash AND c.file_hash ~ '^[0-9a-f]{64}$'
            UNION ALL
            SELECT c.key, c.place, 5, '', 'odd_key' FROM files c
            WHERE c.is_there AND (
                c.key ~ '(^|/)\.{0,2}(/|$)' OR c.key ~ '^\.exaifs(/|$)' OR c.key ~ '[^/]{255}[^/]'
            )
        ) f WHERE f.kind IS NOT NULL
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_fsck_findings(text, text[]) IS 'Internal: what is wrong with objects and rows of these keys.';

CREATE OR REPLACE FUNCTION public.exaifs_fsck_scan(p_bucket text, p_after text, p_limit integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = '' SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_after text := coalesce(p_after, '');
    v_limit integer := least(greatest(coalesce(p_limit, 1000), 1), 10000);
    v_keys text[];
BEGIN
    v_keys := ARRAY(
        SELECT DISTINCT k.key COLLATE "C" FROM (
            (SELECT o.name AS key FROM storage.objects o
             WHERE o.bucket_id = p_bucket AND o.name COLLATE "C" > v_after
             ORDER BY o.name COLLATE "C" LIMIT v_limit)
            UNION ALL
            (SELECT m.supabase_storage_path FROM public.file_metadata m
             WHERE m.bucket = p_bucket AND m.supabase_storage_path COLLATE "C" > v_after
             ORDER BY m.supabase_storage_path COLLATE "C" LIMIT v_limit)
        ) k
        ORDER BY 1 LIMIT v_limit
    );
    RETURN jsonb_build_object(
        'findings', public.exaifs_fsck_findings(p_bucket, v_keys),
        'scanned', cardinality(v_keys),
        'next', CASE WHEN cardinality(v_keys) = v_limit THEN v_keys[v_limit] END
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_fsck_scan(text, text, integer) IS
    'A page of all keys that have an object or a row, in byte order: {"findings": [{"kind", "key", "note"}], "scanned": keys, "next": give it as p_after, or null}. p_limit is 1 to 10,000.';

-- Loses nothing: rows are made from objects, rows of nothing go, one of several rows stays at the path and the
-- others are set aside as in 0002, and what was said of other bytes is taken back.
CREATE OR REPLACE FUNCTION public.exaifs_fsck_repair(p_bucket text, p_key text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_object record;
    v_row public.file_metadata%ROWTYPE;
    v_finding record;
    v_done jsonb := '[]';
    v_count bigint;
BEGIN
    -- Locks in the order of every other writer: object, row.
    SELECT o.version, o.metadata, o.user_metadata, o.updated_at INTO v_object
    FROM storage.objects o WHERE o.bucket_id = p_bucket AND o.name = p_key FOR SHARE;
    PERFORM FROM public.file_metadata m WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key
    ORDER BY m.file_id FOR UPDATE;
    FOR v_finding IN
        SELECT f.value ->> 'kind' AS kind, f.value ->> 'note' AS note
        FROM jsonb_array_elements(public.exaifs_fsck_findings(p_bucket, ARRAY[p_key])) WITH ORDINALITY AS f (value, place)
        -- Duplicates first: the others are about the row that stays.
        ORDER BY f.value ->> 'kind' <> 'row_duplicate', f.place
    LOOP
        CASE v_finding.kind
            WHEN 'row_duplicate' THEN
                UPDATE public.file_metadata SET bucket = 'duplicate:' || file_id
                WHERE file_id IN (
                    SELECT d.file_id FROM (
                        SELECT m.file_id, row_number() OVER (
                            ORDER BY (public.exaifs_json_object(m.metadata) ->> 'version' IS NOT DISTINCT FROM coalesce(v_object.version, '')) DESC,
                                m.updated_at DESC NULLS LAST, m.upload_date DESC NULLS LAST, m.created_at DESC NULLS LAST, m.file_id DESC
                        ) AS place
                        FROM public.file_metadata m WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key
                    ) d WHERE d.place > 1
                );
                GET DIAGNOSTICS v_count = ROW_COUNT;
                v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'set ' || v_count || ' rows aside, the newest stays');
            WHEN 'row_without_object' THEN
                BEGIN
                    DELETE FROM public.file_metadata WHERE bucket = p_bucket AND supabase_storage_path = p_key;
                    v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'deleted the row');
                EXCEPTION WHEN foreign_key_violation THEN NULL;  -- something of the project's own refers to it
                END;
            WHEN 'object_without_row' THEN
                PERFORM public.exaifs_ensure_row(p_bucket, p_key);
                v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'made the row');
            WHEN 'row_outdated', 'row_disagrees' THEN
                PERFORM public.exaifs_sync_row(
                    p_bucket, p_key, v_object.version, v_object.metadata, v_object.user_metadata, v_object.updated_at
                );
                v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'brought the row up to date');
            WHEN 'hash_malformed' THEN
                UPDATE public.file_metadata SET file_hash = NULL
                WHERE bucket = p_bucket AND supabase_storage_path = p_key AND file_hash !~ '^[0-9a-f]{64}$';
                v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'took the hash away');
            WHEN 'ids_of_other_content' THEN
                UPDATE public.file_metadata SET
                    provider_file_ids = public.exaifs_json_object(provider_file_ids) - split_part(v_finding.note, ' ', 1)
                WHERE bucket = p_bucket AND supabase_storage_path = p_key
                    AND public.exaifs_json_object(provider_file_ids) -> split_part(v_finding.note, ' ', 1) ->> 'sha256' <> file_hash;
                v_done := v_done || jsonb_build_object('kind', v_finding.kind, 'done', 'took the id away: ' || v_finding.note);
            ELSE NULL;
        END CASE;
    END LOOP;
    IF v_done <> '[]' THEN
        PERFORM public.exaifs_log_row(p_bucket, p_key);
    END IF;
    RETURN jsonb_build_object('done', v_done);
END
$$;
COMMENT ON FUNCTION public.exaifs_fsck_repair(text, text) IS
    'Mends what can be mended at one key without losing anything: {"done": [{"kind", "done": words}]}.';

-- After all bytes of a version were read. Ids of other bytes go with the wrong hash.
CREATE OR REPLACE FUNCTION public.exaifs_fsck_set_hash(
    p_bucket text, p_key text, p_version text, p_before text, p_sha256 text
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_set boolean;
BEGIN
    IF coalesce(p_sha256, '') !~ '^[0-9a-f]{64}$' THEN
        RAISE EXCEPTION 'a SHA-256 is needed' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM FROM storage.objects o
    WHERE o.bucket_id = p_bucket AND o.name = p_key AND coalesce(o.version, '') = p_version FOR SHARE;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('set', false);
    END IF;
    UPDATE public.file_metadata m SET
        file_hash = p_sha256,
        local_cache_path = NULL,
        provider_file_ids = (
            SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') FROM jsonb_each(public.exaifs_json_object(m.provider_file_ids)) e
            WHERE coalesce(p_before, '') = '' OR (jsonb_typeof(e.value) = 'object' AND e.value ->> 'sha256' = p_sha256)
        )
    WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key
        AND public.exaifs_json_object(m.metadata) ->> 'version' = p_version
        AND coalesce(m.file_hash, '') = coalesce(p_before, '');
    v_set := FOUND;
    IF v_set THEN
        PERFORM public.exaifs_log_row(p_bucket, p_key);
    END IF;
    RETURN jsonb_build_object('set', v_set);
END
$$;
COMMENT ON FUNCTION public.exaifs_fsck_set_hash(text, text, text, text, text) IS
    'Notes what the bytes of a version hash to, in place of p_before (empty: nothing was known). Returns {"set": false} where object or row are others by now.';

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (12, 'fsck') ON CONFLICT DO NOTHING;
