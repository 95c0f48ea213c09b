-- The trigger on storage.objects: keeps file_metadata in step with every writer, the dashboard included, and
-- logs each change in the writer's own transaction. It never raises: a trigger that does makes every Storage
-- call fail. What it swallows is in exaifs_trigger_errors; the log and the row fail apart from each other.
--
-- Here and below, functions that look up keys forbid sequential scans: pooled connections keep the plans
-- they made while the tables were empty, and a bulk copy would get slower with every file. Functions that
-- join storage.objects are planned at every call, for the same reason.

CREATE OR REPLACE FUNCTION public.exaifs_encode_name(p_name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = ''
AS $$
DECLARE
    v_raw bytea := convert_to(p_name, 'UTF8');
    v_char text;
    v_out text := '';
BEGIN
    FOR i IN 0 .. length(v_raw) - 1 LOOP
        v_char := CASE WHEN get_byte(v_raw, i) BETWEEN 32 AND 126 THEN chr(get_byte(v_raw, i)) ELSE '' END;
        IF v_char = '=' AND encode(substr(v_raw, i + 2, 2), 'escape') ~ '^[0-9A-F]{2}$' THEN
            v_char := '';
        END IF;
        IF v_char <> '' AND strpos('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.!*''() &$@;:+,=', v_char) > 0 THEN
            v_out := v_out || v_char;
        ELSE
            v_out := v_out || '=' || upper(lpad(to_hex(get_byte(v_raw, i)), 2, '0'));
        END IF;
    END LOOP;
    IF right(v_out, 23) = '.emptyFolderPlaceholder' THEN
        v_out := left(v_out, -23) || '=2EemptyFolderPlaceholder';
    END IF;
    RETURN v_out;
END
$$;
COMMENT ON FUNCTION public.exaifs_encode_name(text) IS 'Internal: the key component that stands for a file name.';

CREATE OR REPLACE FUNCTION public.exaifs_decode_name(p_component text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = ''
AS $$
DECLARE
    v_part text;
    v_hex text := '';
    v_name text;
BEGIN
    IF p_component !~ '=[0-9A-F]{2}' THEN
        RETURN p_component;
    END IF;
    FOR v_part IN SELECT m[1] FROM regexp_matches(p_component, '=[0-9A-F]{2}|.', 'gs') AS m LOOP
        v_hex := v_hex || CASE
            WHEN length(v_part) = 3 THEN substr(v_part, 2)
            ELSE encode(convert_to(v_part, 'UTF8'), 'hex')
        END;
    END LOOP;
    BEGIN
        v_name := convert_from(decode(v_hex, 'hex'), 'UTF8');
    EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
        RETURN p_component;
    END;
    IF strpos(v_name, '/') > 0 OR v_name IN ('', '.', '..') OR public.exaifs_encode_name(v_name) <> p_component THEN
        RETURN p_component;
    END IF;
    RETURN v_name;
END
$$;
COMMENT ON FUNCTION public.exaifs_decode_name(text) IS
    'Internal: the file name that a key component shows as; what is not UTF-8, or not our escape, stays as it is.';

CREATE OR REPLACE FUNCTION public.exaifs_json_object(p_value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = ''
AS $$
BEGIN
    -- The embedded server's storage, on a PostgreSQL of its own, writes its JSON as a string.
    IF jsonb_typeof(p_value) = 'string' THEN
        p_value := (p_value #>> '{}')::jsonb;
    END IF;
    RETURN CASE WHEN jsonb_typeof(p_value) = 'object' THEN p_value ELSE '{}' END;
EXCEPTION WHEN invalid_text_representation THEN
    RETURN '{}';
END
$$;
COMMENT ON FUNCTION public.exaifs_json_object(jsonb) IS 'Internal: the value if it is an object, else {}.';

-- Makes the row of one object say what the object is now. Returns whether anything was written.
-- Hash and provider ids outlive the call only if the bytes are known to be the same: same ETag and size as
-- the row says, or the writer's own hash. A row without a version was made by the project's own code, before
-- exaifs or just before its upload: it is believed if the size fits.
CREATE OR REPLACE FUNCTION public.exaifs_sync_row(
    p_bucket text, p_key text, p_version text, p_metadata jsonb, p_user_metadata jsonb, p_updated_at timestamptz
) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_object jsonb := public.exaifs_json_object(p_metadata);
    v_user jsonb := public.exaifs_json_object(p_user_metadata);
    v_row public.file_metadata%ROWTYPE;
    v_found boolean;
    v_old jsonb;
    v_new jsonb;
    v_posix jsonb;
    v_size bigint;
    v_hash text;
    v_adopted boolean;
    v_same boolean;
    v_keep_ids boolean;
BEGIN
    v_size := CASE WHEN v_object ->> 'size' ~ '^[0-9]{1,18}$' THEN (v_object ->> 'size')::bigint ELSE 0 END;
    SELECT * INTO v_row FROM public.file_metadata m
    WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key FOR UPDATE;
    v_found := FOUND;
    v_old := public.exaifs_json_object(v_row.metadata);
    v_same := coalesce(v_found AND v_row.file_size = v_size AND (
        NOT v_old ? 'version' OR (v_object ->> 'eTag' <> '' AND v_old ->> 'etag' = v_object ->> 'eTag')
    ), false);
    v_adopted := v_same AND NOT v_old ? 'version';
    IF v_same AND v_old ->> 'version' = coalesce(p_version, '') THEN
        RETURN false;
    END IF;

    -- A server that leaves the last writer's metadata on another writer's bytes would vouch for the wrong hash.
    IF NOT v_user ? 'exaifs' OR (v_found AND NOT v_same AND v_old ->> 'write_id' = v_user ->> 'write_id') THEN
        v_user := '{}';
    END IF;
    v_hash := CASE
        WHEN v_user ->> 'sha256' ~ '^[0-9a-f]{64}$' THEN v_user ->> 'sha256'
        WHEN v_same THEN v_row.file_hash
    END;
    v_keep_ids := v_hash = v_row.file_hash OR (v_same AND v_row.file_hash IS NULL);
    v_posix := public.exaifs_json_object(v_old -> 'posix') - 'mtime_ns' - 'kind'
        || public.exaifs_json_object(v_user -> 'posix');
    v_new := (v_old - 'write_id') || jsonb_build_object(
        'version', coalesce(p_version, ''), 'etag', coalesce(v_object ->> 'eTag', ''), 'posix', v_posix
    );
    IF jsonb_typeof(v_user -> 'write_id') = 'string' THEN
        v_new := v_new || jsonb_build_object('write_id', v_user -> 'write_id');
    END IF;
    IF jsonb_typeof(v_user -> 'xattrs') = 'object' THEN
        v_new := v_new || jsonb_build_object('xattrs', v_user -> 'xattrs');
    END IF;

    IF v_found THEN
        UPDATE public.file_metadata SET
            file_size = v_size,
            mime_type = coalesce(v_user ->> 'mime', CASE WHEN v_adopted THEN mime_type END, v_object ->> 'mimetype'),
            file_hash = v_hash,
            provider_file_ids = CASE WHEN v_keep_ids THEN provider_file_ids ELSE '{}' END,
            local_cache_path = CASE WHEN v_keep_ids THEN local_cache_path END,
            upload_date = coalesce(CASE WHEN v_adopted THEN upload_date END, p_updated_at, now()),
            metadata = v_new
        WHERE file_id = v_row.file_id;
    ELSE
        INSERT INTO public.file_metadata (
            bucket, supabase_storage_path, original_filename, file_size, mime_type, file_hash,
            upload_date, metadata, provider_file_ids
        ) VALUES (
            p_bucket, p_key, public.exaifs_decode_name(substring(p_key FROM '[^/]*$')), v_size,
            coalesce(v_user ->> 'mime', v_object ->> 'mimetype'), v_hash,
            coalesce(p_updated_at, now()), v_new, '{}'
        ) ON CONFLICT (bucket, supabase_storage_path) DO NOTHING;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.exaifs_sync_row(text, text, text, jsonb, jsonb, timestamptz) IS
    'Internal: makes the row of one object say what the object is now.';

-- A move keeps the row: same file id, new path. Returns whether the row describes the object as it is now.
CREATE OR REPLACE FUNCTION public.exaifs_move_row(
    p_old_bucket text, p_old_key text, p_old_version text,
    p_bucket text, p_key text, p_version text, p_etag text
) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_version text;
BEGIN
    -- The storage server refuses to move onto an object, so a row there is left over.
    DELETE FROM public.file_metadata WHERE bucket = p_bucket AND supabase_storage_path = p_key;
    UPDATE public.file_metadata SET
        bucket = p_bucket,
        supabase_storage_path = p_key,
        original_filename = public.exaifs_decode_name(substring(p_key FROM '[^/]*$')),
        metadata = CASE
            WHEN metadata ->> 'version' = coalesce(p_old_version, '')
            THEN metadata || jsonb_build_object('version', coalesce(p_version, ''), 'etag', coalesce(p_etag, ''))
            ELSE metadata
        END
    WHERE bucket = p_old_bucket AND supabase_storage_path = p_old_key
    RETURNING metadata ->> 'version' INTO v_version;
    RETURN coalesce(v_version = coalesce(p_version, ''), false);
END
$$;
COMMENT ON FUNCTION public.exaifs_move_row(text, text, text, text, text, text, text) IS
    'Internal: carries a row along when its object is moved.';

CREATE OR REPLACE FUNCTION public.exaifs_on_object() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_from boolean := false;  -- a followed key ceases to be
    v_to boolean := false;    -- a followed key comes to be, or gets new bytes
    v_moved boolean := false;
    v_in_step boolean := false;  -- the row needs nothing more
BEGIN
    IF TG_OP = 'UPDATE' THEN
        -- The embedded server stamps last_accessed_at at every GET.
        IF OLD.bucket_id IS NOT DISTINCT FROM NEW.bucket_id AND OLD.name IS NOT DISTINCT FROM NEW.name
            AND OLD.version IS NOT DISTINCT FROM NEW.version AND OLD.metadata IS NOT DISTINCT FROM NEW.metadata
        THEN
            RETURN NULL;
        END IF;
        v_moved := OLD.bucket_id IS DISTINCT FROM NEW.bucket_id OR OLD.name IS DISTINCT FROM NEW.name;
    END IF;

    BEGIN
        IF TG_OP = 'DELETE' OR v_moved THEN
            v_from := EXISTS (SELECT FROM public.exaifs_buckets b WHERE b.bucket_id = OLD.bucket_id);
        END IF;
        IF TG_OP <> 'DELETE' THEN
            v_to := EXISTS (SELECT FROM public.exaifs_buckets b WHERE b.bucket_id = NEW.bucket_id);
        END IF;
        IF v_from THEN
            INSERT INTO public.exaifs_change_log (bucket, op, key) VALUES (OLD.bucket_id, 'delete', OLD.name);
        END IF;
        IF v_to THEN
            INSERT INTO public.exaifs_change_log (bucket, op, key) VALUES (NEW.bucket_id, 'put', NEW.name);
        END IF;
    -- A cancelled statement is no error of ours and passes: OTHERS does not catch it.
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error(
            'log ' || TG_OP, coalesce(NEW.bucket_id, OLD.bucket_id), coalesce(NEW.name, OLD.name), SQLSTATE, SQLERRM
        );
    END;

    BEGIN
        IF v_from AND v_to THEN
            v_in_step := public.exaifs_move_row(
                OLD.bucket_id, OLD.name, OLD.version,
                NEW.bucket_id, NEW.name, NEW.version, public.exaifs_json_object(NEW.metadata) ->> 'eTag'
            );
        ELSIF v_from THEN
            DELETE FROM public.file_metadata WHERE bucket = OLD.bucket_id AND supabase_storage_path = OLD.name;
        END IF;
        IF v_to AND NOT v_in_step THEN
            PERFORM public.exaifs_sync_row(
                NEW.bucket_id, NEW.name, NEW.version, NEW.metadata, NEW.user_metadata, NEW.updated_at
            );
        END IF;
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error(
            'row ' || TG_OP, coalesce(NEW.bucket_id, OLD.bucket_id), coalesce(NEW.name, OLD.name), SQLSTATE, SQLERRM
        );
    END;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.exaifs_on_object() IS
    'Trigger on storage.objects: logs the change and keeps file_metadata in step. Never raises.';

CREATE OR REPLACE FUNCTION public.exaifs_backfill(p_bucket text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_nestloop = off
AS $$
DECLARE
    v_object record;
    v_rows bigint := 0;
BEGIN
    FOR v_object IN
        SELECT o.name, o.version, o.metadata, o.user_metadata, o.updated_at
        FROM storage.objects o
        LEFT JOIN public.file_metadata m ON m.bucket = o.bucket_id AND m.supabase_storage_path = o.name
        WHERE o.bucket_id = p_bucket AND m.metadata ->> 'version' IS DISTINCT FROM coalesce(o.version, '')
    LOOP
        IF public.exaifs_sync_row(
            p_bucket, v_object.name, v_object.version, v_object.metadata, v_object.user_metadata, v_object.updated_at
        ) THEN
            v_rows := v_rows + 1;
        END IF;
    END LOOP;
    RETURN jsonb_build_object('rows', v_rows);
END
$$;
COMMENT ON FUNCTION public.exaifs_backfill(text) IS
    'Makes rows for the objects of a bucket that have none, or one of an older version. Returns {"rows": how many}.';

CREATE OR REPLACE FUNCTION public.exaifs_register_bucket(p_bucket text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
DECLARE
    v_new boolean;
BEGIN
    IF coalesce(p_bucket, '') = '' THEN
        RAISE EXCEPTION 'a bucket name is needed' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Writers that are not followed yet must be done before the rows are made.
    BEGIN
        LOCK TABLE storage.objects IN SHARE ROW EXCLUSIVE MODE;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    -- Cursors from before have missed what was not followed.
    INSERT INTO public.exaifs_buckets (bucket_id, trimmed_txid)
    VALUES (p_bucket, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)
    ON CONFLICT (bucket_id) DO NOTHING;
    v_new := FOUND;
    RETURN jsonb_build_object('bucket', p_bucket, 'new', v_new) || public.exaifs_backfill(p_bucket);
END
$$;
COMMENT ON FUNCTION public.exaifs_register_bucket(text) IS
    'Lets the trigger follow a bucket and makes the missing rows. Returns {"bucket", "new", "rows"}. Repeating it is harmless.';

INSERT INTO public.exaifs_migrations (number, name) VALUES (4, 'object_trigger') ON CONFLICT DO NOTHING;
