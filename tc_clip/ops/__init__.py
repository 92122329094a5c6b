"""Operations in the fastest form that a device has, each beside its plain formula."""
