-- What a mount writes to rows. Parameters are text, integer and arrays of them; JSON comes as text.

-- Makes sure that the row describes the object as it is now. Returns whether there is an object. The object
-- is locked before it is read, so that an overwrite under way cannot be undone in the row.
CREATE OR REPLACE FUNCTION public.exaifs_ensure_row(p_bucket text, p_key text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_object record;
    v_in_step boolean;
BEGIN
    SELECT coalesce(m.metadata ->> 'version' = coalesce(o.version, ''), false) INTO v_in_step
    FROM storage.objects o
    LEFT JOIN public.file_metadata m ON m.bucket = o.bucket_id AND m.supabase_storage_path = o.name
    WHERE o.bucket_id = p_bucket AND o.name = p_key;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF v_in_step THEN
        RETURN true;
    END IF;
    SELECT o.version, o.metadata, o.user_metadata, o.updated_at INTO v_object
    FROM storage.objects o WHERE o.bucket_id = p_bucket AND o.name = p_key FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM public.exaifs_sync_row(
        p_bucket, p_key, v_object.version, v_object.metadata, v_object.user_metadata, v_object.updated_at
    );
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.exaifs_ensure_row(text, text) IS
    'Internal: makes sure that the row describes the object as it is now; false if there is no object.';

CREATE OR REPLACE FUNCTION public.exaifs_log_row(p_bucket text, p_key text) RETURNS void
LANGUAGE sql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
    INSERT INTO public.exaifs_change_log (bucket, op, key)
    SELECT b.bucket_id, 'row', p_key FROM public.exaifs_buckets b WHERE b.bucket_id = p_bucket
$$;
COMMENT ON FUNCTION public.exaifs_log_row(text, text) IS 'Internal: logs that attributes of an object changed.';

-- After an upload. Where the server kept the upload's metadata, the trigger has done it all, and only the
-- cache path is left. Where it drops them, the row is completed, if the object there has our size and
-- nobody has completed the row of this version before.
CREATE OR REPLACE FUNCTION public.exaifs_commit(p_bucket text, p_key text, p_fields text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_fields jsonb := public.exaifs_json_object(p_fields::jsonb);
    v_posix jsonb := public.exaifs_json_object(v_fields -> 'posix');
    v_xattrs jsonb := CASE
        WHEN jsonb_typeof(v_fields -> 'xattrs') = 'object' THEN jsonb_build_object('xattrs', v_fields -> 'xattrs')
        ELSE '{}'
    END;
    v_cache_path text := v_fields ->> 'local_cache_path';
    v_version text;
BEGIN
    IF NOT public.exaifs_ensure_row(p_bucket, p_key) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(o.version, '') INTO v_version FROM storage.objects o
    WHERE o.bucket_id = p_bucket AND o.name = p_key
        AND NOT public.exaifs_json_object(o.user_metadata) ? 'write_id'
        AND public.exaifs_json_object(o.metadata) ->> 'size' = v_fields ->> 'size';
    IF FOUND THEN
        UPDATE public.file_metadata SET
            file_hash = v_fields ->> 'sha256',
            mime_type = coalesce(v_fields ->> 'mime', mime_type),
            provider_file_ids = CASE
                WHEN file_hash IS NULL OR file_hash = v_fields ->> 'sha256' THEN provider_file_ids ELSE '{}'
            END,
            metadata = metadata || v_xattrs || jsonb_build_object(
                'write_id', v_fields -> 'write_id',
                'posix', public.exaifs_json_object(metadata -> 'posix') || v_posix
            )
        WHERE bucket = p_bucket AND supabase_storage_path = p_key
            AND metadata ->> 'version' = v_version AND NOT metadata ? 'write_id'
            AND v_fields ->> 'sha256' ~ '^[0-9a-f]{64}$';
        IF FOUND THEN
            PERFORM public.exaifs_log_row(p_bucket, p_key);
        END IF;
    END IF;
    IF v_cache_path IS NOT NULL THEN
        UPDATE public.file_metadata SET local_cache_path = v_cache_path
        WHERE bucket = p_bucket AND supabase_storage_path = p_key
            AND metadata ->> 'write_id' = v_fields ->> 'write_id'
            AND local_cache_path IS DISTINCT FROM v_cache_path;
    END IF;
    RETURN public.exaifs_records(p_bucket, ARRAY[p_key]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_commit(text, text, text) IS
    'After an upload: completes the row where the server dropped the upload''s metadata. p_fields is JSON: {"sha256", "write_id", "mime", "posix", "xattrs", "size", "local_cache_path"}. Returns R (a foreign write_id: somebody else wrote since) or null: the object is gone.';

CREATE OR REPLACE FUNCTION public.exaifs_patch(p_bucket text, p_key text, p_fields text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_fields jsonb := public.exaifs_json_object(p_fields::jsonb);
    v_posix jsonb := public.exaifs_json_object(v_fields -> 'posix');
    v_set jsonb := public.exaifs_json_object(v_fields -> 'set_xattrs');
    v_drop text[] := CASE
        WHEN jsonb_typeof(v_fields -> 'drop_xattrs') = 'array'
        THEN ARRAY(SELECT jsonb_array_elements_text(v_fields -> 'drop_xattrs')) ELSE '{}'
    END;
BEGIN
    IF NOT public.exaifs_ensure_row(p_bucket, p_key) THEN
        RETURN NULL;
    END IF;
    -- One statement: a patch at the same time waits for the row and builds on what this one made.
    UPDATE public.file_metadata SET
        metadata = metadata || jsonb_build_object(
            'posix', public.exaifs_json_object(metadata -> 'posix') || v_posix,
            'xattrs', (public.exaifs_json_object(metadata -> 'xattrs') - v_drop) || v_set
        )
    WHERE bucket = p_bucket AND supabase_storage_path = p_key;
    IF FOUND THEN
        PERFORM public.exaifs_log_row(p_bucket, p_key);
    END IF;
    RETURN public.exaifs_records(p_bucket, ARRAY[p_key]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_patch(text, text, text) IS
    'Changes attributes. p_fields is JSON: {"posix": {merged key by key}, "set_xattrs": {name: base64}, "drop_xattrs": [name]}, dropped before others are set. Returns R, or null: no such object.';

-- After a server-side copy for a rename over a file: the source's identity goes over to the target.
-- The hash is the target's own if the copy brought one along; else the source's, provided that the source's
-- row described the source, and the source has not been written since the copy.
CREATE OR REPLACE FUNCTION public.exaifs_carry_row(p_bucket text, p_source text, p_target text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_source public.file_metadata%ROWTYPE;
    v_target public.file_metadata%ROWTYPE;
    v_version text;
    v_same boolean;
    v_hash text;
BEGIN
    IF p_source = p_target THEN
        RETURN public.exaifs_records(p_bucket, ARRAY[p_target]) -> 0;
    ELSIF NOT public.exaifs_ensure_row(p_bucket, p_target) THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v_source FROM public.file_metadata m
    WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_source FOR UPDATE;
    IF FOUND THEN
        SELECT * INTO v_target FROM public.file_metadata m
        WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_target FOR UPDATE;
        SELECT s.version INTO v_version FROM storage.objects s, storage.objects t
        WHERE s.bucket_id = p_bucket AND s.name = p_source AND t.bucket_id = p_bucket AND t.name = p_target
            AND v_source.metadata ->> 'version' = coalesce(s.version, '') AND s.updated_at <= t.updated_at;
        v_same := FOUND AND v_source.file_size = v_target.file_size
            AND coalesce(v_target.file_hash = v_source.file_hash, true);
        v_hash := coalesce(v_target.file_hash, CASE WHEN v_same THEN v_source.file_hash END);
        DELETE FROM public.file_metadata WHERE file_id = v_target.file_id;
        UPDATE public.file_metadata SET
            supabase_storage_path = p_target,
            original_filename = public.exaifs_decode_name(substring(p_target FROM '[^/]*$')),
            file_size = v_target.file_size,
            mime_type = CASE WHEN v_same THEN mime_type ELSE v_target.mime_type END,
            file_hash = v_hash,
            provider_file_ids = CASE WHEN v_same THEN provider_file_ids ELSE '{}' END,
            local_cache_path = CASE WHEN v_same THEN local_cache_path END,
            metadata = CASE
                    WHEN v_same THEN metadata
                    ELSE (metadata - 'write_id') || jsonb_build_object('posix',
                        public.exaifs_json_object(metadata -> 'posix') - 'mtime_ns' - 'kind'
                            || public.exaifs_json_object(v_target.metadata -> 'posix'))
                        || CASE
                            WHEN v_target.metadata ? 'write_id'
                            THEN jsonb_build_object('write_id', v_target.metadata -> 'write_id') ELSE '{}'
                        END
                END
                || jsonb_build_object('version', v_target.metadata ->> 'version', 'etag', v_target.metadata ->> 'etag')
        WHERE file_id = v_source.file_id;
        PERFORM public.exaifs_log_row(p_bucket, p_source);
        PERFORM public.exaifs_log_row(p_bucket, p_target);
    END IF;
    RETURN public.exaifs_records(p_bucket, ARRAY[p_target]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_carry_row(text, text, text) IS
    'After a copy for a rename: the source''s row (file id, ids, attributes, hash) becomes the target''s. Repeating it is harmless. Returns R of the target, or null: it is gone.';

-- Rows that somebody holds are left out rather than waited for: counters are worth no deadlock with a bulk
-- delete. Writes nothing that the change feed reads.
CREATE OR REPLACE FUNCTION public.exaifs_touch(
    p_bucket text, p_keys text[], p_counts integer[], p_last text[]
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_updated bigint;
BEGIN
    WITH reads AS (
        SELECT u.key, sum(coalesce(u.count, 0))::integer AS count, max(u.last::numeric) AS last_ns
        FROM unnest(p_keys, p_counts, p_last) AS u (key, count, last) GROUP BY u.key
    ), free AS (
        SELECT m.file_id, r.count, timestamptz 'epoch' + interval '1 microsecond' * trunc(r.last_ns / 1000)::bigint AS last
        FROM public.file_metadata m JOIN reads r ON r.key = m.supabase_storage_path
        WHERE m.bucket = p_bucket FOR NO KEY UPDATE OF m SKIP LOCKED
    )
    UPDATE public.file_metadata m SET
        access_count = coalesce(m.access_count, 0) + f.count,
        last_accessed = greatest(m.last_accessed, f.last)
    FROM free f WHERE m.file_id = f.file_id;
    GET DIAGNOSTICS v_updated = ROW_COUNT;
    RETURN jsonb_build_object('updated', v_updated);
END
$$;
COMMENT ON FUNCTION public.exaifs_touch(text, text[], integer[], text[]) IS
    'Adds reads to the access counters; p_last is nanoseconds since the epoch as text. Returns {"updated": rows}; busy rows are left out.';

CREATE OR REPLACE FUNCTION public.exaifs_trim_log(p_keep_hours integer) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
DECLARE
    v_since timestamptz := now() - interval '1 hour' * greatest(coalesce(p_keep_hours, 168), 0);
    v_below bigint;
    v_deleted bigint;
BEGIN
    -- A whole prefix in the order of the feed goes: below the first transaction with something to keep.
    SELECT least(pg_snapshot_xmin(pg_current_snapshot())::text::bigint, min(c.txid)) INTO v_below
    FROM public.exaifs_change_log c WHERE c.at >= v_since;
    WITH gone AS (
        DELETE FROM public.exaifs_change_log c WHERE c.txid < v_below RETURNING c.bucket, c.txid, c.seq
    ), upto AS (
        SELECT DISTINCT ON (g.bucket) g.bucket, g.txid, g.seq FROM gone g ORDER BY g.bucket, g.txid DESC, g.seq DESC
    ), remembered AS (
        UPDATE public.exaifs_buckets b SET trimmed_txid = u.txid, trimmed_seq = u.seq
        FROM upto u WHERE u.bucket = b.bucket_id AND (u.txid, u.seq) > (b.trimmed_txid, b.trimmed_seq)
    )
    SELECT count(*) INTO v_deleted FROM gone;
    RETURN jsonb_build_object('deleted', v_deleted);
END
$$;
COMMENT ON FUNCTION public.exaifs_trim_log(integer) IS
    'Drops change log entries older than so many hours; a cursor before them is no longer continuous. Returns {"deleted": entries}.';

CREATE OR REPLACE FUNCTION public.exaifs_delete_queue_list(p_bucket text, p_limit integer) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    -- Gone, or replaced by somebody since: no longer ours to delete.
    DELETE FROM public.exaifs_delete_queue q
    WHERE q.bucket = p_bucket AND NOT EXISTS (
        SELECT FROM storage.objects o
        WHERE o.bucket_id = q.bucket AND o.name = q.key AND o.version IS NOT DISTINCT FROM q.object_version
    );
    RETURN jsonb_build_object('keys', (
        SELECT coalesce(jsonb_agg(q.key ORDER BY q.queued_at, q.key), '[]') FROM (
            SELECT d.key, d.queued_at FROM public.exaifs_delete_queue d WHERE d.bucket = p_bucket
            ORDER BY d.queued_at, d.key LIMIT least(greatest(coalesce(p_limit, 500), 1), 10000)
        ) q
    ));
END
$$;
COMMENT ON FUNCTION public.exaifs_delete_queue_list(text, integer) IS
    'Objects to delete through the Storage API: {"keys": [key]}, oldest first. An entry leaves when its object is gone or has another version.';

INSERT INTO public.exaifs_migrations (number, name) VALUES (6, 'write_functions') ON CONFLICT DO NOTHING;
