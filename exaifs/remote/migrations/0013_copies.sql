-- Copies and their ids at providers. An id belongs to a content: a row that gets bytes which another row of its
-- bucket has gets that row's ids. So a copy has them at once, and keeps them when the original goes, by a
-- deletion or by the rename over it with which programs save. Whoever writes the row: hence a trigger.

CREATE INDEX IF NOT EXISTS file_metadata_ids_idx ON public.file_metadata (file_hash) WHERE provider_file_ids <> '{}';

-- As whoever writes: nobody gets ids of rows that he may not read. What goes wrong here must not keep a row from
-- being written; without ids, the next who asks for one finds it by the content.
CREATE OR REPLACE FUNCTION public.exaifs_take_ids() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    IF public.exaifs_json_object(NEW.provider_file_ids) = '{}' THEN
        NEW.provider_file_ids := (
            SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') FROM (
                SELECT m.provider_file_ids AS ids FROM public.file_metadata m
                WHERE m.file_hash = NEW.file_hash AND m.bucket = NEW.bucket AND m.provider_file_ids <> '{}' LIMIT 10
            ) r, jsonb_each(public.exaifs_json_object(r.ids)) e
        );
    END IF;
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.exaifs_take_ids() IS
    'Trigger on file_metadata: gives a row with new bytes the ids at providers that others with these bytes have.';

CREATE OR REPLACE TRIGGER exaifs_file_metadata_ids_of_new
    BEFORE INSERT ON public.file_metadata FOR EACH ROW
    WHEN (NEW.file_hash IS NOT NULL) EXECUTE FUNCTION public.exaifs_take_ids();
CREATE OR REPLACE TRIGGER exaifs_file_metadata_ids_of_changed
    BEFORE UPDATE OF file_hash ON public.file_metadata FOR EACH ROW
    WHEN (NEW.file_hash IS DISTINCT FROM OLD.file_hash AND NEW.file_hash IS NOT NULL)
    EXECUTE FUNCTION public.exaifs_take_ids();

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (13, 'copies') ON CONFLICT DO NOTHING;
