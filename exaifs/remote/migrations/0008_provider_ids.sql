-- File ids at LLM providers. An id belongs to a content (file_hash), not to a name: what one file has, every
-- file with the same bytes may use. provider_file_ids maps a provider's name to a record,
--   {"id", "uri", "sha256", "purpose", "account", "size" (bytes), "uploaded_at", "expires_at", "verified_at"}
-- with times as text in UTC, 'YYYY-MM-DDTHH:MM:SSZ', so that they compare as text. A value that is a string
-- was written by an earlier design: it is the id. The trigger empties the column when the bytes change.

-- What was uploaded to providers from here: the only files that may be deleted there again.
CREATE TABLE IF NOT EXISTS public.exaifs_provider_files (
    provider text NOT NULL,                          -- name in the settings
    account text NOT NULL,                           -- which account there, without secrets
    id text NOT NULL,                                -- what the provider calls the file
    sha256 text NOT NULL,                            -- of the bytes
    size bigint NOT NULL DEFAULT 0,                  -- bytes
    noted_at timestamptz NOT NULL DEFAULT now(),     -- when the id was first stored or offered
    PRIMARY KEY (provider, account, id)
);
CREATE INDEX IF NOT EXISTS exaifs_provider_files_id_idx ON public.exaifs_provider_files (id);

CREATE OR REPLACE FUNCTION public.exaifs_provider_id(p_record jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = ''
AS $$
    SELECT r.id FROM (
        SELECT CASE jsonb_typeof(p_record)
            WHEN 'object' THEN p_record ->> 'id' WHEN 'string' THEN p_record #>> '{}'
        END AS id
    ) r WHERE length(r.id) <= 1024 AND r.id COLLATE "C" ~ '^[!-~]([ -~]*[!-~])?$'
$$;
COMMENT ON FUNCTION public.exaifs_provider_id(jsonb) IS
    'Internal: the id in a provider record of either form; null: none that exaifs takes for one.';

CREATE OR REPLACE FUNCTION public.exaifs_find_provider_ids(p_sha256 text, p_provider text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    RETURN jsonb_build_object('records', (
        SELECT coalesce(jsonb_agg(d.record ORDER BY d.record::text), '[]') FROM (
            SELECT DISTINCT m.provider_file_ids -> p_provider AS record FROM public.file_metadata m
            WHERE m.file_hash = p_sha256
                AND public.exaifs_provider_id(public.exaifs_json_object(m.provider_file_ids) -> p_provider) IS NOT NULL
            LIMIT 100
        ) d
    ));
END
$$;
COMMENT ON FUNCTION public.exaifs_find_provider_ids(text, text) IS
    'What any file with these bytes has at a provider: {"records": [record or text]}, each once.';

-- Compare and set. A record is stored only for the bytes it was made from, and only while no file with these
-- bytes has another id of the same account and purpose that is still good: of two hosts that uploaded at the
-- same time one wins, the other learns the winner's record and deletes its upload. The id p_expected_id, which
-- the caller found and rejected, counts as absent. A file that was renamed meanwhile is found by its bytes.
-- An id from elsewhere that is known here for other bytes came with a file that was copied out, changed and copied
-- back with its attributes: it is refused, since nothing at the provider would show that the bytes differ.
CREATE OR REPLACE FUNCTION public.exaifs_set_provider_id(
    p_bucket text, p_key text, p_provider text, p_record text, p_sha256 text, p_expected_id text, p_version text
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_record jsonb := public.exaifs_json_object(p_record::jsonb);
    v_id text := public.exaifs_provider_id(v_record);
    v_now text := to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"');
    v_key text := p_key;
    v_file uuid;
    v_hash text;
    v_current jsonb;
    v_other jsonb;
    -- By an upload from here; else by somebody else, and found alive or told to us.
    v_is_made boolean := v_record ->> 'uploaded_at' IS NOT NULL AND v_record ->> 'origin' IS DISTINCT FROM 'registered';
BEGIN
    IF v_id IS NULL OR coalesce(p_sha256, '') !~ '^[0-9a-f]{64}$' OR coalesce(p_provider, '') = '' THEN
        RAISE EXCEPTION 'a provider, a record with an id and a SHA-256 are needed' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_is_made THEN
        INSERT INTO public.exaifs_provider_files (provider, account, id, sha256, size)
        VALUES (
            p_provider, coalesce(v_record ->> 'account', ''), v_id, p_sha256,
            CASE WHEN v_record ->> 'size' ~ '^[0-9]{1,18}$' THEN (v_record ->> 'size')::bigint ELSE 0 END
        ) ON CONFLICT DO NOTHING;
    END IF;
    -- Everybody who sets an id of these bytes waits here, whichever file it is for.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_provider || ':' || p_sha256, 0));

    PERFORM public.exaifs_ensure_row(p_bucket, p_key);
    SELECT m.file_id, m.file_hash, public.exaifs_json_object(m.provider_file_ids) -> p_provider
    INTO v_file, v_hash, v_current
    FROM public.file_metadata m WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key
        AND (m.file_hash = p_sha256 OR (m.file_hash IS NULL AND m.metadata ->> 'version' = p_version))
    FOR UPDATE;
    IF v_file IS NULL THEN
        SELECT m.file_id, m.file_hash, m.supabase_storage_path, public.exaifs_json_object(m.provider_file_ids) -> p_provider
        INTO v_file, v_hash, v_key, v_current
        FROM public.file_metadata m WHERE m.bucket = p_bucket AND m.file_hash = p_sha256
        ORDER BY m.supabase_storage_path LIMIT 1 FOR UPDATE;
        IF v_file IS NULL THEN
            RETURN jsonb_build_object('stored', false, 'current', NULL, 'record', NULL);
        END IF;
    END IF;

    IF v_record ->> 'origin' = 'registered' AND (
        EXISTS (
            SELECT FROM public.exaifs_provider_files f
            WHERE f.id = v_id AND f.provider = p_provider AND f.sha256 <> p_sha256
        ) OR EXISTS (
            SELECT FROM public.file_metadata m WHERE m.provider_file_ids <> '{}' AND m.file_hash <> p_sha256
                AND public.exaifs_provider_id(public.exaifs_json_object(m.provider_file_ids) -> p_provider) = v_id
        )
    ) THEN
        RETURN jsonb_build_object('stored', false, 'current', NULL, 'record', NULL, 'of_other_bytes', true);
    END IF;

    SELECT m.provider_file_ids -> p_provider INTO v_other FROM public.file_metadata m
    WHERE m.file_hash = p_sha256 AND v_is_made
        AND jsonb_typeof(public.exaifs_json_object(m.provider_file_ids) -> p_provider) = 'object'
        AND public.exaifs_provider_id(m.provider_file_ids -> p_provider) IS NOT NULL
        AND m.provider_file_ids -> p_provider ->> 'account' = v_record ->> 'account'
        AND m.provider_file_ids -> p_provider ->> 'purpose' IS NOT DISTINCT FROM v_record ->> 'purpose'
        AND m.provider_file_ids -> p_provider ->> 'id' NOT IN (v_id, coalesce(p_expected_id, ''))
        AND coalesce(m.provider_file_ids -> p_provider ->> 'expires_at', '9') > v_now
    ORDER BY m.file_id <> v_file, m.file_id LIMIT 1;
    IF v_other IS NULL AND v_record ->> 'origin' IS DISTINCT FROM 'registered'
        AND public.exaifs_provider_id(v_current) IS DISTINCT FROM v_id
        AND public.exaifs_provider_id(v_current) IS DISTINCT FROM nullif(p_expected_id, '')
        AND jsonb_typeof(v_current) = 'string' AND public.exaifs_provider_id(v_current) IS NOT NULL
    THEN
        v_other := v_current;
    END IF;
    IF v_other IS NOT NULL THEN
        RETURN jsonb_build_object(
            'stored', false, 'current', v_other, 'record', public.exaifs_records(p_bucket, ARRAY[v_key]) -> 0
        );
    END IF;

    UPDATE public.file_metadata SET
        file_hash = p_sha256,
        provider_file_ids = public.exaifs_json_object(provider_file_ids) || jsonb_build_object(p_provider, v_record)
    WHERE file_id = v_file;
    IF v_current IS DISTINCT FROM v_record OR v_hash IS NULL THEN
        PERFORM public.exaifs_log_row(p_bucket, v_key);
    END IF;
    RETURN jsonb_build_object(
        'stored', true, 'current', v_record, 'record', public.exaifs_records(p_bucket, ARRAY[v_key]) -> 0
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_set_provider_id(text, text, text, text, text, text, text) IS
    'Stores the record of one provider in the row of a file with these bytes; the object version vouches for a row without a hash, which gets one. Returns {"stored", "current": the record that holds now, "record": R}; all null: no file has these bytes, or, with "of_other_bytes", the id from elsewhere is other bytes'' own.';

CREATE OR REPLACE FUNCTION public.exaifs_forget_provider_id(
    p_bucket text, p_key text, p_provider text, p_id text
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_hash text;
    v_id text;
    v_row record;
BEGIN
    SELECT m.file_hash, public.exaifs_provider_id(public.exaifs_json_object(m.provider_file_ids) -> p_provider)
    INTO v_hash, v_id
    FROM public.file_metadata m WHERE m.bucket = p_bucket AND m.supabase_storage_path = p_key;
    v_id := coalesce(nullif(p_id, ''), v_id);
    -- In one order, so that two that forget the same do not wait for each other.
    FOR v_row IN
        SELECT m.file_id, m.bucket, m.supabase_storage_path AS key FROM public.file_metadata m
        WHERE ((m.bucket = p_bucket AND m.supabase_storage_path = p_key) OR m.file_hash = v_hash)
            AND public.exaifs_provider_id(public.exaifs_json_object(m.provider_file_ids) -> p_provider) = v_id
        ORDER BY m.file_id FOR UPDATE
    LOOP
        UPDATE public.file_metadata SET provider_file_ids = provider_file_ids - p_provider WHERE file_id = v_row.file_id;
        PERFORM public.exaifs_log_row(v_row.bucket, v_row.key);
    END LOOP;
    RETURN public.exaifs_records(p_bucket, ARRAY[p_key]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_forget_provider_id(text, text, text, text) IS
    'Takes an id (empty: the one the file has) from the file and from all others with the same bytes. Returns R, or null: no such object.';

CREATE OR REPLACE FUNCTION public.exaifs_unused_provider_files(
    p_provider text, p_account text, p_older_s integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    RETURN jsonb_build_object('files', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'id', u.id, 'sha256', u.sha256, 'size', u.size,
            'noted_at', to_char(u.noted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        ) ORDER BY u.noted_at, u.id), '[]') FROM (
            SELECT f.* FROM public.exaifs_provider_files f
            WHERE f.provider = p_provider AND f.account = p_account
                AND f.noted_at <= now() - interval '1 second' * greatest(coalesce(p_older_s, 0), 0)
                AND NOT EXISTS (
                    SELECT FROM public.file_metadata m WHERE m.file_hash = f.sha256
                        AND public.exaifs_provider_id(public.exaifs_json_object(m.provider_file_ids) -> p_provider) = f.id
                )
            ORDER BY f.noted_at, f.id LIMIT 1000
        ) u
    ));
END
$$;
COMMENT ON FUNCTION public.exaifs_unused_provider_files(text, text, integer) IS
    'Uploads noted so long ago whose id no file has any more: {"files": [{"id", "sha256", "size", "noted_at"}]}, oldest first, at most 1000.';

CREATE OR REPLACE FUNCTION public.exaifs_drop_provider_file(p_provider text, p_account text, p_id text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    DELETE FROM public.exaifs_provider_files WHERE provider = p_provider AND account = p_account AND id = p_id;
    RETURN jsonb_build_object('dropped', FOUND);
END
$$;
COMMENT ON FUNCTION public.exaifs_drop_provider_file(text, text, text) IS
    'Forgets an upload that was deleted at the provider. Returns {"dropped": whether it was known}.';

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (8, 'provider_ids') ON CONFLICT DO NOTHING;
